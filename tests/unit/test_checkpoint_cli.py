"""`nora-checkpoint`: what inspect says, what convert writes, what download refuses."""

import dataclasses
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import releases
import torch
from fake_hub import serve
from releases import change_json, old_names, publish, with_reference, with_tied_head
from safetensors.torch import load_file, save_file

from nora_core.embodiment import Embodiment
from nora_core.normalization import Statistics
from nora_core.types import Observation
from nora_policy.checkpoints import checkpoint, hub, inspection, layout, published_files, weights
from nora_policy.checkpoints.conversion import Conversion, convert
from nora_policy.checkpoints.weights import LM_HEAD
from nora_policy.models.grammar import Grammar
from nora_policy.models.nora15 import build
from nora_policy.policy import Policy
from nora_policy.preprocess import Preprocessor

ROBOTS = Path(__file__).parents[2] / "src/nora_bringup/config/embodiments"
SIM = ROBOTS / "sim_widowx.yaml"
REVISION = "0123456789abcdef0123456789abcdef01234567"
COMMAND = [sys.executable, "-m", "nora_policy.checkpoints.cli"]
# Without ROS: only what the command itself needs.
ENVIRONMENT = {
    "PYTHONPATH": "src/nora_core:src/nora_policy",
    "PATH": os.environ["PATH"],
    "OMP_NUM_THREADS": "1",
}


def run(*arguments, **options) -> subprocess.CompletedProcess:
    environment = {**ENVIRONMENT, **options.pop("env", {})}
    command = [*COMMAND, *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False, **options
    )


def quiet(_: int, __: int) -> None:
    """No progress bar."""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Releases whose weights are numbers of bfloat16, kept as float32."""
    root = tmp_path_factory.mktemp("releases")
    kinds = ("nora", "nora-long", "nora-1.5")
    networks = {kind: releases.network(kind).bfloat16().float() for kind in kinds}
    return {kind: publish(root / kind, model, old_names) for kind, model in networks.items()}


@pytest.fixture
def folder(sources, tmp_path):
    return shutil.copytree(sources["nora-1.5"], tmp_path / "nora-1.5")


# inspect


def facts(folder, *arguments) -> dict[str, str]:
    return dict(inspection.inspect(folder, *arguments).facts)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nora", {"kind": "NORA", "heads": "fast", "horizon": "1", "expert": "none"}),
        ("nora-long", {"kind": "NORA-Long", "heads": "fast", "horizon": "5", "expert": "none"}),
        ("nora-1.5", {"kind": "NORA-1.5", "heads": "flow, fast", "horizon": "5"}),
    ],
)
def test_inspect_says_what_it_is(sources, kind, expected):
    found = facts(sources[kind])
    assert found.items() >= expected.items()
    assert found["layout"] == "published"
    assert found["action dim"] == "7"
    assert found["action tokens"] == "263 ... 2310"
    assert found["repetition penalty"] == "1.05"
    assert found["backbone"].startswith("947,520 parameters: 2 x 128, 4 heads, 2 of keys")
    assert found["statistics sim_widowx"] == "7 dimensions, scaled: 1111110"


def test_inspect_counts_what_torch_counts(sources):
    model = releases.network("nora-1.5")
    expert = sum(p.numel() for name, p in model.named_parameters() if name.startswith("action_"))
    assert facts(sources["nora-1.5"])["types"] == f"F32 x {len(model.state_dict()) - 1}"
    assert facts(sources["nora-1.5"])["expert"].startswith(f"{expert:,} parameters: 2 x 64")


def test_inspect_does_not_guess_the_horizon(sources, tmp_path):
    copy = shutil.copytree(sources["nora-long"], tmp_path / "mine")
    found = facts(copy, None, [SIM])
    assert found["kind"] == "NORA or NORA-Long"
    assert found["horizon"].startswith("unknown: --horizon 1")
    assert "horizon: unknown" in found["fits sim_widowx"]
    assert facts(copy, 5)["kind"] == "NORA-Long"


def test_inspect_says_when_the_name_disagrees(sources):
    surprises = inspection.inspect(sources["nora-long"], 1).surprises
    assert "horizon: 1 was given, nora-long has 5" in surprises


def test_inspect_says_which_robots_fit(sources, tmp_path):
    robots = sorted(ROBOTS.glob("*.yaml"))
    found = facts(sources["nora-1.5"], None, robots)
    assert found["fits sim_widowx"] == "yes"
    assert "expected statistics 'bridge_orig', available: ['sim_widowx']" in found["fits widowx"]
    assert (
        "head: expected one of NORA, fast, got 'flow'"
        in facts(sources["nora"], None, [SIM])["fits sim_widowx"]
    )


@pytest.mark.parametrize("head", ["flow", "fast"])
def test_what_is_said_to_fit_is_loaded(folder, head):
    embodiment = Embodiment.load(SIM)
    for change in (nothing, other_statistics, take_fast):
        change(folder)
        found, statistics = layout.read(folder), read_statistics(folder)
        robot = robot_with(embodiment, head)
        try:
            Policy.load(folder, robot, "cpu")
        except (ValueError, OSError):
            assert layout.misfits(found, statistics, robot) != []
        else:
            assert layout.misfits(found, statistics, robot) == []


def robot_with(embodiment, head):
    action = dataclasses.replace(embodiment.action, head=head)
    return dataclasses.replace(embodiment, action=action)


def read_statistics(folder):
    return layout.read_statistics(folder / "norm_stats.json")[0]


def nothing(_: Path) -> None:
    pass


def other_statistics(folder):
    releases.write(folder, "norm_stats.json", {"libero": {"action": releases.STATISTICS}})


def take_fast(folder):
    shutil.rmtree(folder / "fast")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"q01": [0] * 7, "q99": [1] * 7}, "x: no mask: which dimensions are scaled is not said"),
        ({"q01": [0] * 7, "mask": [True] * 7}, "x: no q99"),
        ({"q01": [0] * 7, "q99": [1] * 6, "mask": [True] * 7}, "q99: expected shape (7,), got"),
        ({"q01": [0], "q99": [1], "mask": [True]}, "x: the mask scales the last one, the gripper"),
        ({"q01": ["a"], "q99": [1], "mask": [True]}, "norm_stats.json: x: could not convert"),
    ],
)
def test_inspect_says_what_is_wrong_with_statistics(folder, entry, message):
    releases.write(folder, "norm_stats.json", {"x": {"action": entry}})
    assert message in "\n".join(inspection.inspect(folder).surprises)


def test_inspect_knows_the_public_fast(sources, folder):
    surprises = inspection.inspect(sources["nora-1.5"]).surprises
    assert any("another vocabulary than the public FAST+" in line for line in surprises)
    change_json(folder / "fast/processor_config.json", scale=20)
    assert "fast: scale is 20, in FAST+ it is 10" in inspection.inspect(folder).surprises
    shutil.rmtree(folder / "fast")
    assert any("fast/ is missing" in line for line in inspection.inspect(folder).surprises)


def test_inspect_reads_no_weights(sources, monkeypatch):
    def read(self: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(weights.Stored, "blocks", read)
    assert inspection.inspect(sources["nora-1.5"]).facts[0] == ("kind", "NORA-1.5")


def test_the_command_prints_it(sources):
    done = run("inspect", sources["nora-1.5"], "--embodiment", "sim_widowx")
    assert done.returncode == 0, done.stderr
    assert "kind                   NORA-1.5\n" in done.stdout
    assert "fits sim_widowx        yes\n" in done.stdout
    assert "! generation_config.json: repetition_penalty 1.05 is honoured" in done.stdout


def test_a_robot_that_it_does_not_fit_is_exit_code_1(sources):
    done = run("inspect", sources["nora-1.5"], "--embodiment", SIM, "widowx")
    assert done.returncode == 1, done.stderr
    assert "fits sim_widowx        yes\n" in done.stdout
    assert "fits widowx            no: " in done.stdout


def test_an_unknown_robot_is_bad_input(sources):
    done = run("inspect", sources["nora-1.5"], "--embodiment", "nobody")
    assert done.returncode == 2
    assert "no such embodiment file, available: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "nowhere"), "error: checkpoint nowhere: no such folder\n"),
        (("convert", "nowhere", "out"), "error: checkpoint nowhere: no such folder\n"),
        (("download", "declare-lab/nora", "out", "--revision", "main"), "40 hex digits"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# convert


def chunks(policy: Policy) -> np.ndarray:
    rgb = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    observation = Observation((rgb, rgb[::-1]), "pick up the red cube", 0)
    found = [policy.infer(observation), *policy.sample(observation, 2)]
    return np.stack([chunk.actions_TA for chunk in found])


def policy_of(folder: Path, horizon: int | None, head: str) -> Policy:
    """A policy of the source, whatever its layout."""
    embodiment = Embodiment.load(SIM)
    model = checkpoint.load(folder, torch.device("cpu"), torch.float32, horizon)
    config = model.config
    tokenizer = checkpoint.load_tokenizer(folder, config)
    grammar = None
    if head == "fast":
        fast = checkpoint.load_fast(folder, config)
        grammar = Grammar(fast, config.horizon, config.action_dim)
    statistics = Statistics.load(folder / "norm_stats.json", "sim_widowx")
    preprocessor = Preprocessor(config, tokenizer, embodiment.cameras)
    return Policy(
        name="source",
        model=model,
        preprocessor=preprocessor,
        statistics=statistics,
        embodiment=embodiment,
        grammar=grammar,
        seed=7,
    )


@pytest.mark.parametrize("dtype", ["bf16", "keep"])
@pytest.mark.parametrize(
    ("kind", "head"),
    [("nora", "fast"), ("nora-long", "fast"), ("nora-1.5", "flow"), ("nora-1.5", "fast")],
)
def test_what_was_converted_gives_the_same_chunks(sources, tmp_path, kind, head, dtype):
    source, out = sources[kind], tmp_path / "out"
    convert(Conversion(source=source, out=out, dtype=dtype), quiet)
    policy = Policy.load(out, Embodiment.load(SIM), "cpu", seed=7, head=head)
    horizon = None if kind == "nora-1.5" else {"nora": 1, "nora-long": 5}[kind]
    expected = chunks(policy_of(source, horizon, head))
    assert expected.shape == (3, horizon or 5, 7)
    np.testing.assert_array_equal(chunks(policy), expected)
    stored = {tensor.dtype for tensor in layout.read(out).tensors.values()}
    assert stored == {"BF16" if dtype == "bf16" else "F32"}


@pytest.mark.parametrize("shards", [1, 3])
def test_convert_writes_what_safetensors_reads(tmp_path, shards):
    model = releases.network("nora-1.5")
    source = publish(tmp_path / "source", model, with_reference, shards)
    convert(Conversion(source=source, out=tmp_path / "out"), quiet)
    got = load_file(tmp_path / "out/model.safetensors")
    expected = model.state_dict()
    assert got.keys() == expected.keys() - {LM_HEAD}
    for name, tensor in got.items():
        assert torch.equal(tensor, expected[name].bfloat16())


def test_the_card_says_where_it_came_from(tmp_path):
    def leftovers(state):
        return with_tied_head(with_reference(state))

    source = publish(tmp_path / "nora-1.5", releases.network("nora-1.5"), leftovers)
    read: list[tuple[int, int]] = []
    convert(
        Conversion(source=source, out=tmp_path / "out", embodiment=str(SIM)),
        lambda *numbers: read.append(numbers),
    )
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert card["source"]["repo"] == "nora-1.5"
    names = {*(p.name for p in source.glob("*.*")), "fast/tokenizer.json"}
    assert card["source"]["files"].keys() >= names
    for name in names:
        digest = hashlib.sha256((source / name).read_bytes()).hexdigest()
        assert card["source"]["files"][name] == digest
    assert "vlm.lm_head.weight" in card["dropped"]
    assert all(n.startswith(("ref_", "vlm.lm_head")) for n in card["dropped"])
    assert len(card["dropped"]) == 1 + 24 + 1 + 2
    assert any("another vocabulary than the public FAST+" in line for line in card["surprises"])
    assert (tmp_path / "out/embodiment.yaml").read_text() == SIM.read_text()
    assert {total for _, total in read} == {sum(number for number, _ in read)}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (take_fast, {}, r"fast: no such folder, give that of FAST\+ with --fast"),
        (lambda f: (f / "tokenizer.json").unlink(), {}, "expected at least 153713 rows"),
        (lambda f: (f / "norm_stats.json").unlink(), {}, "give one with --statistics"),
        (lambda f: f.rename(f.with_name("mine")), {"source": "mine"}, "horizon: expected 1"),
        (
            nothing,
            {"embodiment": "widowx"},
            "embodiment widowx: norm_stats.json: expected statistics 'bridge_orig'",
        ),
        (lambda f: (f.parent / "out").mkdir(), {}, "expected a new folder, it is already there"),
        (lambda f: change_json(f / "norm_stats.json", sim_widowx={}), {}, "sim_widowx: no action"),
    ],
)
def test_what_cannot_be_converted_leaves_nothing(sources, tmp_path, change, options, message):
    source = shutil.copytree(sources["nora"], tmp_path / "nora")
    change(source)
    was_there = set(tmp_path.iterdir())
    options = {**options, "source": tmp_path / options.get("source", "nora")}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        convert(Conversion(out=tmp_path / "out", **options), quiet)
    assert set(tmp_path.iterdir()) == was_there


def test_what_is_missing_can_be_given(sources, tmp_path):
    source = shutil.copytree(sources["nora"], tmp_path / "mine")
    given_files = tmp_path / "given"
    given_files.mkdir()
    (source / "norm_stats.json").rename(given_files / "mine.json")
    (source / "fast").rename(given_files / "fast")
    job = Conversion(
        source=source,
        out=tmp_path / "out",
        horizon=1,
        statistics=given_files / "mine.json",
        fast=given_files / "fast",
    )
    card = convert(job, quiet)
    assert card["source"]["files"].keys() >= {str(given_files / "mine.json")}
    assert Policy.load(tmp_path / "out", Embodiment.load(SIM), "cpu", head="fast").head == "fast"


def test_the_tokenizer_of_a_release_that_has_none_can_be_given(tmp_path):
    model = releases.network("nora-1.5")
    config, tokenizer = model.config, releases.release_tokenizer()
    text = dataclasses.replace(config.text_config, vocab_size=tokenizer.get_vocab_size())
    ids = published_files.RELEASE.markers
    config = dataclasses.replace(config, text_config=text, token_ids=ids, action_token_min=151_665)
    source = publish(tmp_path / "nora-1.5", build(config), dtype=torch.bfloat16)
    for name in ("tokenizer.json", "config.json"):
        (source / name).unlink()
    releases.write(source, "config.json", releases.qwen_config(config))
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file.*--tokenizer"):
        convert(Conversion(source=source, out=tmp_path / "out"), quiet)
    wrong = source.parent / "wrong.json"
    releases.TOKENIZER.save(str(wrong))
    with pytest.raises(ValueError, match=r"<\|image_pad\|>: expected id 151655, got 261"):
        convert(Conversion(source=source, out=tmp_path / "out", tokenizer=wrong), quiet)
    tokenizer.save(str(tmp_path / "given.json"))
    convert(
        Conversion(source=source, out=tmp_path / "out", tokenizer=tmp_path / "given.json"), quiet
    )
    assert layout.read(tmp_path / "out").config.action_token_min == 151_665
    shutil.copy(tmp_path / "given.json", source / "tokenizer.json")
    assert not [note for note in layout.read(source).notes if "ids" in note]


def test_what_changed_since_the_download_is_refused(folder, tmp_path):
    files = {"model.safetensors": "0" * 64}
    releases.write(folder, "source.json", {"repo": "a/b", "revision": REVISION, "files": files})
    with pytest.raises(
        ValueError, match=r"model\.safetensors: expected sha256 0{64} as downloaded"
    ):
        convert(Conversion(source=folder, out=tmp_path / "out"), quiet)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_before_writing(folder, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match=r"expected 0\.002 GB free, got 0\.001"):
        convert(Conversion(source=folder, out=tmp_path / "out"), quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nora-1.5"]


def test_a_disk_that_fills_up_is_named(folder, tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))

    done = run("convert", folder, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 2
    assert "error: [Errno 27] File too large: " in done.stderr
    assert "model.safetensors" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nora-1.5"]


# with a file of a few hundred MB


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    root = tmp_path_factory.mktemp("large")
    model = releases.network("nora-1.5")
    source = publish(root / "nora-1.5", model)
    text = dataclasses.replace(model.config.text_config, intermediate_size=90_000)
    config = dataclasses.replace(model.config, text_config=text)
    with torch.device("meta"):
        state = build(config).state_dict()
    del state[LM_HEAD]
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in state.items()}
    save_file(zeros, source / "model.safetensors")
    releases.write(source, "config.json", releases.qwen_config(config))
    yield source
    shutil.rmtree(root)


MEASURE = """
import resource, sys
from pathlib import Path
from nora_policy.checkpoints.conversion import Conversion, convert

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
convert(Conversion(source=Path(sys.argv[1]), out=Path(sys.argv[2])), lambda *_: None)
print(peak() - before)
"""


def test_convert_needs_little_memory(large, tmp_path):
    size = (large / "model.safetensors").stat().st_size
    assert size > 250e6
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEASURE, large, tmp_path / "out"]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=root, check=True, capture_output=True, text=True
    )
    peak = int(done.stdout)
    assert peak < 1.2 * size  # what was asked for
    assert peak < 120e6  # and what a few blocks need, whatever the size
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_convert_leaves_no_checkpoint(large, tmp_path, number):
    root, out = Path(__file__).parents[2], tmp_path / "out"
    command = [*COMMAND, "convert", large, out]
    with subprocess.Popen(command, env=ENVIRONMENT, cwd=root, stderr=subprocess.PIPE) as process:
        partial = tmp_path / ".out.partial/model.safetensors"
        while not partial.exists():
            time.sleep(0.002)
            assert process.poll() is None
        process.send_signal(number)
        process.communicate()
    is_killed = number == signal.SIGKILL
    assert process.returncode == (-9 if is_killed else 130)
    assert [p.name for p in tmp_path.iterdir()] == ([".out.partial"] if is_killed else [])
    done = run("convert", large, out)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    shutil.rmtree(out)


# the network


def test_nothing_but_download_uses_the_network(sources, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="the network was used"):
        socket.create_connection(("127.0.0.1", 9))
    inspection.inspect(sources["nora"])
    convert(Conversion(source=sources["nora"], out=tmp_path / "out"), quiet)
    Policy.load(tmp_path / "out", Embodiment.load(SIM), "cpu", head="fast")
    Policy.load(sources["nora-1.5"], Embodiment.load(SIM), "cpu")


@pytest.fixture
def served(sources):
    with serve(sources["nora"], "declare-lab/nora", REVISION) as server:
        yield server


def download(server, out, repo="declare-lab/nora", revision=REVISION):
    home = out.parent / "home"
    environment = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HOME": str(home)}
    return run("download", repo, out, "--revision", revision, env=environment)


def test_download_brings_one_commit_with_its_hashes(served, sources, tmp_path):
    done = download(served, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out/source.json").read_text())
    assert (record["repo"], record["revision"]) == ("declare-lab/nora", REVISION)
    names = {str(p.relative_to(sources["nora"])) for p in sources["nora"].rglob("*.*")}
    assert record["files"].keys() == names
    for name, digest in record["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    served.requests.clear()
    assert download(served, tmp_path / "out").returncode == 0
    assert not [p for method, p, _ in served.requests if method == "GET" and "resolve" in p]
    card = convert(Conversion(source=tmp_path / "out", out=tmp_path / "converted"), quiet)
    assert card["source"]["repo"] == "declare-lab/nora"
    assert card["source"]["revision"] == REVISION
    assert layout.load_config(tmp_path / "converted").horizon == 1


def test_an_interrupted_download_goes_on(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    content = np.random.default_rng(0).bytes(40_000_000)  # more than the client keeps in memory
    (source / "model.safetensors").write_bytes(content)
    with serve(source, "declare-lab/nora", REVISION) as server:
        server.break_after = 25_000_000
        done = download(server, tmp_path / "out")
        if done.returncode:  # the client may also go on by itself
            assert "error: " in done.stderr
            done = download(server, tmp_path / "out")
        assert done.returncode == 0, done.stderr
        starts = [int(r.removeprefix("bytes=").split("-")[0]) for *_, r in server.requests if r]
    assert max(starts) >= 10_000_000
    assert (tmp_path / "out/model.safetensors").read_bytes() == content


def test_another_commit_in_the_same_folder_is_refused(tmp_path):
    record = {"repo": "declare-lab/nora", "revision": REVISION, "files": {}}
    releases.write(tmp_path, "source.json", record)
    with pytest.raises(ValueError, match=f"it holds declare-lab/nora at {REVISION}; choose"):
        hub.download("declare-lab/nora", tmp_path, "f" * 40)


def test_pickles_and_code_stay_where_they_are(sources, tmp_path):
    source = shutil.copytree(sources["nora"], tmp_path / "source")
    for name in ("training_args.bin", "processing.py"):
        (source / name).write_text("x")
    with serve(source, "declare-lab/nora", REVISION) as server:
        assert download(server, tmp_path / "out").returncode == 0
    assert not [p for p in (tmp_path / "out").rglob("*") if p.suffix in (".bin", ".py")]


def test_a_file_that_arrives_damaged_is_refused(served, tmp_path):
    served.lies["model.safetensors"] = "0" * 64
    done = download(served, tmp_path / "out")
    assert done.returncode == 2
    assert not (tmp_path / "out/source.json").exists()


def test_a_repository_that_is_not_there_is_one_line(served, tmp_path):
    done = download(served, tmp_path / "out", repo="declare-lab/else")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: declare-lab/else at {REVISION}: ")
    assert done.stderr.count("\n") == 1


def test_offline_is_one_line(served, tmp_path):
    environment = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    arguments = ("declare-lab/nora", tmp_path / "out", "--revision", REVISION)
    done = run("download", *arguments, env=environment)
    assert done.returncode == 2
    assert "error: declare-lab/nora at" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert served.requests == []


@pytest.mark.parametrize("revision", ["main", "v1.0", "0123abc", REVISION.upper(), REVISION + "0"])
def test_only_a_whole_commit_is_fetched(tmp_path, revision):
    with pytest.raises(ValueError, match=r"expected the 40 hex digits .* git ls-remote"):
        hub.download("declare-lab/nora", tmp_path, revision)


@pytest.mark.parametrize("repo", ["nora", "declare-lab/nora/x", "https://x.y/nora", "../nora"])
def test_a_repository_has_an_owner_and_a_name(tmp_path, repo):
    with pytest.raises(ValueError, match="expected owner/name"):
        hub.download(repo, tmp_path, REVISION)
