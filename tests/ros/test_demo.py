"""`nora demo` and `nora up` as a user runs them: real processes, real DDS, a clean end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

STOP_LIMIT_S = 2.0
START_LIMIT_S = 90.0


def nora(*arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "nora_bringup.cli", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def children(pid: int) -> list[int]:
    """Every living descendant of a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_for(condition, limit_s: float = START_LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    arguments = ("--trials", "3", "--trial-seconds", "4", "--real-time-factor", "1")
    process = nora("demo", *arguments, "--out", str(out))
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    return out, output


@pytest.mark.timeout(240)
def test_demo_reports_three_trials_that_moved_the_arm(demo_run):
    out, output = demo_run
    sheet = (out / "trials.md").read_text()
    assert sheet.strip() in output
    assert "| demo | normal | 3 |" in sheet
    rows = [line for line in sheet.splitlines() if re.match(r"\| put the .* \| 1000\d\d \|", line)]
    assert len(rows) == 3
    for row in rows:
        rate = float(row.split("|")[6])
        assert rate > 2.0
        assert re.search(r"\d+ / \d+ ms \| \d+ / \d+ ms \|$", row)
    assert (out / "paths.png").stat().st_size > 20_000
    assert (out / "trials.png").is_file()
    assert len((out / "trials.csv").read_text().splitlines()) == 4


@pytest.mark.timeout(240)
def test_demo_video_shows_every_trial(demo_run):
    out, _ = demo_run
    with av.open(str(out / "demo.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.duration * 1e-6 > 8.0
    assert len(frames) > 60
    assert (frames[0] != frames[-1]).mean() > 0.01


@pytest.mark.timeout(400)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_the_middle_of_a_trial_ends_every_process_within_two_seconds(tmp_path, stop):
    # Always clean; a busy machine may need another attempt to show that it is quick as well.
    took_s = []
    while not took_s or (min(took_s) > STOP_LIMIT_S and len(took_s) < 3):
        took_s.append(stop_in_a_trial(tmp_path / str(len(took_s)), stop))
    assert min(took_s) < STOP_LIMIT_S, took_s


def stop_in_a_trial(out, stop) -> float:
    """Start a demo, stop it in a trial, check that nothing is left of it; seconds to the end."""
    process = nora("demo", "--trial-seconds", "60", "--out", str(out))
    policy_log = out / "logs/policy.log"
    wait_for(lambda: policy_log.is_file() and "instruction: 'put" in policy_log.read_text())
    pids = [process.pid, *children(process.pid)]
    assert len(pids) >= 4
    start = time.monotonic()
    process.send_signal(stop)
    output, _ = process.communicate(timeout=20)
    took_s = time.monotonic() - start
    assert not [pid for pid in pids if is_alive(pid)]
    logs = output + "".join(path.read_text() for path in (out / "logs").glob("*.log"))
    assert "Traceback" not in logs
    assert "was killed" not in output
    return took_s


@pytest.mark.timeout(120)
def test_no_orphan_when_the_runner_itself_is_killed():
    process = nora("up", "--seed", "1", start_new_session=True)
    wait_for(lambda: len(children(process.pid)) == 2)
    pids = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    wait_for(lambda: not [pid for pid in pids if is_alive(pid)], limit_s=15.0)


@pytest.mark.timeout(180)
def test_up_says_when_each_node_is_ready_and_how_it_ended(tmp_path):
    process = nora("up", "--record-dir", str(tmp_path / "bags"))
    assert process.stdout is not None
    said = ""
    while "all ready" not in said:
        line = process.stdout.readline()
        assert line, said
        said += line
    ours = [line for line in said.splitlines() if line.startswith("nora: ")]
    assert ours[0] == "nora: starting sim, bridge, recorder; Ctrl-C ends them"
    ready = [line for line in ours if " ready: " in line and "all" not in line]
    assert {line.split()[2] for line in ready} == {"sim", "bridge", "recorder"}
    assert re.fullmatch(r"nora: ready: \w+ \(\d+\.\d s\); waiting for \w+, \w+", ready[0])
    assert re.fullmatch(r"nora: ready: \w+ \(\d+\.\d s\)", ready[2])
    assert ours[-1] == "nora: all ready: sim, bridge, recorder"
    refused, _ = nora("up").communicate(timeout=30)
    assert "error: nora up runs already in ROS domain" in refused
    assert f"as process {process.pid}: end it first" in refused
    recorder = next(p for p in children(process.pid) if "recorder" in command_line(p))
    os.kill(recorder, signal.SIGKILL)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "nora: stopped: recorder ended with exit code -9" in said


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("up", "--embodiment", "nobody"), r"error: .*nobody.yaml: no such embodiment file"),
        (("up", "--device", "gpu"), r"gpu"),
        (("demo", "--checkpoint", "nowhere"), r"error: checkpoint: the folder nowhere is missing"),
        (("demo", "--trial-seconds", "-1"), r"error: trial-seconds: expected more than 0"),
        (("demo", "--seed", "-2"), r"error: seed: expected 0 or more"),
        (("demo", "--trials", "0"), r"error: trials: expected at least 1"),
        (
            ("up", "--embodiment", "galaxea_a1"),
            r"error: .*galaxea_a1.yaml: arm is missing",
        ),
        (("up", "--checkpoint", "here"), r"error: checkpoint: the folder here is missing"),
        (("bags", "check"), r"error: the path of a bag is missing: nora bags check FOLDER..."),
    ],
)
def test_bad_input_is_a_clear_line_and_a_non_zero_exit(arguments, message):
    process = nora(*arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.search(message, output)
    assert "Traceback" not in output
