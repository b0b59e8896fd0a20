"""Embodiment files: strict, frozen, with errors that name file, key, expected and got."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from nora_core.embodiment import Embodiment

FOLDER = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments"
FILES = sorted(FOLDER.glob("*.yaml"))


def load_changed(tmp_path: Path, change) -> Embodiment:
    data = yaml.safe_load((FOLDER / "sim_widowx.yaml").read_text())
    change(data)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(data))
    return Embodiment.load(path)


def test_the_three_robots_are_there():
    assert {"sim_widowx", "widowx", "galaxea_a1"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_in_the_folder_loads(path):
    embodiment = Embodiment.load(path)
    assert embodiment.name == path.stem
    assert embodiment.workspace is not None
    assert embodiment.record
    assert {camera.topic for camera in embodiment.cameras} <= set(embodiment.record)


def test_the_first_step_alone_is_played_on_the_widowx():
    """Whole chunks open loop crashed it (NORA paper, section 4.3)."""
    for name in ("widowx", "sim_widowx"):
        action = Embodiment.load(FOLDER / f"{name}.yaml").action
        assert (action.execution, action.execute_steps) == ("first_only", 1)


@pytest.mark.parametrize("execution", ["n_step", "blend"])
def test_other_strategies_play_as_many_steps_as_they_say(tmp_path, execution):
    def change(data):
        data["action"].update(execution=execution, execute_steps=5)

    assert load_changed(tmp_path, change).action.execute_steps == 5


def test_is_frozen():
    embodiment = Embodiment.load(FILES[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        embodiment.workspace = None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(colour="red"), r"changed.yaml: colour: unknown key, expected one of"),
        (lambda d: d["action"].update(hz=5), r"action.hz: unknown key, expected one of .*names"),
        (lambda d: d["limits"].pop("step_m"), r"limits.step_m: missing key"),
        (lambda d: d.pop("workspace"), r"workspace: missing key"),
        (
            lambda d: d["workspace"].update(min_m=[0.1, 0.2]),
            r"workspace.min_m: expected 3 values, got 2",
        ),
        (
            lambda d: d["workspace"].update(max_m=[0.0, 0.0, 0.0]),
            r"workspace.max_m: expected each entry above min_m",
        ),
        (
            lambda d: d["cameras"][0].update(encoding="yuv422"),
            r"cameras\[0\].encoding: expected one of \['rgb8', 'bgr8'\], got 'yuv422'",
        ),
        (
            lambda d: d["cameras"][0].update(max_age_s="0.4"),
            r"cameras\[0\].max_age_s: expected float, got str '0.4'",
        ),
        (
            lambda d: d["limits"].update(velocity_m_s=float("nan")),
            r"limits.velocity_m_s: expected a finite number",
        ),
        (lambda d: d["limits"].update(step_m=-1), r"limits.step_m: expected a positive"),
        (
            lambda d: d["action"].update(execute_steps=1.5),
            r"execute_steps: expected int, got float",
        ),
        (
            lambda d: d["action"].update(execute_steps=2),
            r"action.execute_steps: expected 1 with execution first_only, got 2",
        ),
        (
            lambda d: d["action"].update(execution="all"),
            r"action.execution: expected one of \['first_only', 'n_step', 'blend'\], got 'all'",
        ),
        (lambda d: d["action"].pop("execution"), r"action.execution: missing key"),
        (lambda d: d["action"].update(names=["x"]), r"action.names: expected \['x', 'y', 'z'"),
        (lambda d: d["arm"].update(home_rad=[0.0]), r"arm.home_rad: expected 6 values, got 1"),
        (lambda d: d.update(cameras=[]), r"cameras: at least one is required"),
        (lambda d: d.update(cameras=d["cameras"] * 2), r"cameras: expected distinct names"),
        (lambda d: d.update(action=[1]), r"action: expected a mapping, got list"),
    ],
)
def test_wrong_content_names_file_key_expected_and_got(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        load_changed(tmp_path, change)


def test_a_file_without_workspace_box_loads_so_that_the_bridge_can_refuse(tmp_path):
    assert load_changed(tmp_path, lambda d: d.update(workspace=None)).workspace is None


def test_missing_file_names_what_is_there():
    with pytest.raises(FileNotFoundError, match=r"nobody.yaml.*'sim_widowx'"):
        Embodiment.load(FOLDER / "nobody.yaml")


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    text = (FOLDER / "sim_widowx.yaml").read_text()
    path.write_text(
        text + "workspace: {min_m: [-9, -9, -9], max_m: [9, 9, 9], on_violation: clamp}"
    )
    with pytest.raises(ValueError, match=r"twice.yaml: workspace: expected once, got it 2 times"):
        Embodiment.load(path)


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"latin.yaml: .*utf-8"):
        Embodiment.load(path)


def test_broken_yaml_is_one_error(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ValueError, match=r"broken.yaml: not valid YAML"):
        Embodiment.load(path)
