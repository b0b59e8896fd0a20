"""The process graph: which nodes run for an embodiment, and clear errors for wrong choices."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from nora_bringup import start_checks
from nora_bringup.graph import Options, node_specs, options_from_text
from nora_core.paths import embodiment_file, share, shipped_checkpoint


def executables(options: Options) -> list[str]:
    return [spec.executable for spec in node_specs(options)]


def test_simulated_arm_brings_its_simulator_and_the_bridge_is_up_before_the_policy():
    assert executables(Options(checkpoint="weights")) == ["sim", "bridge", "policy"]
    assert executables(Options(checkpoint="weights", sim="false")) == ["bridge", "policy"]


@pytest.mark.parametrize("robot", ["widowx", "galaxea_a1"])
def test_real_arms_have_no_simulator(robot):
    assert executables(Options(embodiment=robot, checkpoint="weights")) == ["bridge", "policy"]


def test_no_checkpoint_means_no_policy():
    assert executables(Options()) == ["sim", "bridge"]


def test_every_node_gets_the_same_embodiment_file_and_absolute_paths(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(embodiment_file("sim_widowx").read_text())
    specs = node_specs(
        Options(embodiment=str(file), checkpoint="weights", device="cpu", head="fast", seed=3)
    )
    assert {spec.parameters["embodiment_file"] for spec in specs} == {str(file)}
    policy = specs[-1].parameters
    assert Path(str(policy["checkpoint"])).is_absolute()
    assert (policy["device"], policy["head"], policy["seed"]) == ("cpu", "fast", 3)


def test_a_slowed_simulation_is_everybodys_clock():
    slowed = {s.executable: s.parameters for s in node_specs(Options(real_time_factor=0.5))}
    assert slowed["sim"]["publish_clock"] is True
    assert slowed["sim"]["real_time_factor"] == 0.5
    assert "use_sim_time" not in slowed["sim"]  # it is the clock
    options = Options(checkpoint="weights", record_dir="bags", real_time_factor=0.5)
    for spec in node_specs(options)[1:]:
        assert spec.parameters["use_sim_time"] is True, spec.executable
    for spec in node_specs(Options(checkpoint="weights")):
        assert not {"use_sim_time", "publish_clock"} & set(spec.parameters)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (Options(embodiment="nobody"), FileNotFoundError, r"nobody.yaml.*available: .*sim_widowx"),
        (Options(sim="maybe"), ValueError, r"sim: expected auto, true or false, got 'maybe'"),
        (Options(head="slow"), ValueError, r"head: expected auto, flow or fast, got 'slow'"),
        (
            Options(embodiment="widowx", sim="true"),
            ValueError,
            r"sim: expected an embodiment whose driver",
        ),
        (Options(real_time_factor=0.0), ValueError, r"real_time_factor: expected more than 0"),
        (
            Options(embodiment="widowx", real_time_factor=2.0),
            ValueError,
            r"real_time_factor: expected 1 wit",
        ),
    ],
)
def test_wrong_choices_are_clear_errors(options, error, message):
    with pytest.raises(error, match=message):
        node_specs(options)


def test_a_wrong_key_in_a_file_of_ones_own_is_named(tmp_path):
    data = yaml.safe_load(embodiment_file("sim_widowx").read_text())
    data["speed"] = 1
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    with pytest.raises(ValueError, match=r"mine.yaml: speed: unknown key"):
        node_specs(Options(embodiment=str(file)))


def test_the_dds_profile_is_where_the_launchers_look():
    assert (share() / "config/fastdds.xml").is_file()


def problems_of(**options) -> list[str]:
    return start_checks.problems(Options(**options))


def test_all_problems_are_found_before_a_node_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(start_checks, "has_gpu", lambda: False)
    file = tmp_path / "file"
    file.write_text("")
    found = problems_of(checkpoint=str(tmp_path / "none"), device="cuda", record_dir=str(file))
    assert found == [
        f"checkpoint: the folder {tmp_path}/none is missing",
        "device: cuda needs an NVIDIA GPU with its driver, and there is none",
        f"record_dir: cannot write to {file}: File exists",
    ]
    monkeypatch.setattr(start_checks, "has_gpu", lambda: True)
    shipped = str(shipped_checkpoint("sim_widowx"))
    assert problems_of(checkpoint=shipped, device="cuda", record_dir=str(tmp_path / "bags")) == []
    assert problems_of(embodiment="galaxea_a1")[0].endswith(
        "galaxea_a1.yaml: arm is missing, so the bridge cannot move this robot"
    )


def test_a_folder_without_weights_is_no_checkpoint(tmp_path):
    inner = tmp_path / "checkpoint"
    inner.mkdir()
    assert problems_of(checkpoint=str(inner)) == [
        f"checkpoint: {inner} has no weights (*.safetensors)"
    ]
    (inner / "model.safetensors").write_bytes(b"")
    assert problems_of(checkpoint=str(inner)) == [f"checkpoint: {inner} has no config.json"]
    (inner / "config.json").write_text("{}")
    assert problems_of(checkpoint=str(inner)) == []
    (outer,) = problems_of(checkpoint=str(tmp_path))
    assert outer.endswith(f"did you mean {inner}?")


def test_launch_arguments_that_are_no_numbers_are_named():
    texts = {name: str(value) for name, value in dataclasses.asdict(Options()).items()}
    assert options_from_text(texts) == Options()
    assert options_from_text({**texts, "seed": "3"}) == Options(seed=3)
    with pytest.raises(ValueError, match="seed: expected a whole number, got 'abc'"):
        options_from_text({**texts, "seed": "abc"})
    with pytest.raises(ValueError, match="real_time_factor: expected a number, got 'fast'"):
        options_from_text({**texts, "real_time_factor": "fast"})
