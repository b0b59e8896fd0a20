"""The clients of `nora`, run as commands against real nodes: what they print and how they end."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nora_core.paths import embodiment_file
from nora_policy.checkpoints import untrained

FILE = str(embodiment_file("sim_widowx"))
CUBE = "put the red cube on the plate"


def nora(*arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "nora_bringup.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def until_done(*arguments: str) -> str:
    """The output, once the nodes know the arm's state and accept the command."""
    for _ in range(10):
        code, said, error = nora(*arguments, "--timeout", "20")
        if code == 0:
            return said
    raise AssertionError(f"{arguments}: {said}{error}")


@pytest.mark.timeout(300)
def test_bridge_commands(spawn: Any) -> None:
    spawn("nora_bringup.nodes.sim", {"embodiment_file": FILE, "image_height": 16})
    spawn("nora_bringup.nodes.bridge", {"embodiment_file": FILE})
    assert "done: bridge/set_mode" in until_done("mode", "policy")
    code, line, _ = nora("status")
    assert code == 0
    assert line.startswith("mode policy | holding: ")
    assert line.count("\n") == 1
    assert nora("home")[0] == 0
    assert nora("status")[1].startswith("mode hold | ")
    assert nora("estop")[0] == 0
    assert "EMERGENCY STOP" in nora("status")[1]
    code, _, error = nora("mode", "policy")
    assert (code, error[:9]) == (1, "refused: ")
    assert nora("reset")[0] == 0
    assert "done" in until_done("mode", "hold")


@pytest.mark.timeout(300)
def test_recording_commands(spawn: Any, tmp_path: Path) -> None:
    spawn("nora_bringup.nodes.bridge", {"embodiment_file": FILE})
    spawn("nora_bringup.nodes.recorder", {"embodiment_file": FILE, "record_dir": str(tmp_path)})
    folder = Path(until_done("record", "start", CUBE).removeprefix("done: ").strip())
    assert folder.is_dir()
    code, _, error = nora("record", "start", CUBE)
    assert code == 1
    assert error.startswith("refused: ")
    assert f"recording {folder}" in nora("status")[1]
    code, said, _ = nora("record", "stop", "--outcome", "success")
    assert code == 0
    assert said.startswith(f"done: {folder}, audit red: ")  # nobody published images
    assert "outcome: success" in (folder / "label.yaml").read_text()
    code, _, error = nora("record", "stop")
    assert code == 1
    assert error.startswith("refused: ")


@pytest.mark.timeout(300)
def test_instructions(spawn: Any, tmp_path: Path) -> None:
    untrained.write_tiny(tmp_path / "tiny", embodiment_file("sim_widowx"))
    policy = {"embodiment_file": FILE, "checkpoint": str(tmp_path / "tiny"), "device": "cpu"}
    node = spawn("nora_policy.nodes.policy", policy)
    node.wait_for_output("ready: ", 60.0)
    code, _, error = nora("say", CUBE, "--seconds", "1", "--timeout", "20")
    assert code == 1  # there is no camera
    assert error.startswith("refused: ")
    assert "outcome unknown" in error
    code, said, _ = nora("say", CUBE, "--topic")
    assert (code, said) == (0, f"done: sent {CUBE!r}\n")
    node.wait_for_output(f"instruction: '{CUBE}'")


@pytest.mark.timeout(120)
def test_a_policy_that_dies_ends_its_instruction(spawn: Any, ros: Any, tmp_path: Path) -> None:
    """A server that accepts a goal, and is killed."""
    server = tmp_path / "policy.py"
    server.write_text(MORTAL)
    node = spawn(str(server))
    node.wait_for_output("up", 30.0)
    command = [sys.executable, "-m", "nora_bringup.cli", "say", CUBE, "--timeout", "20"]
    say = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    node.wait_for_output("following", 30.0)
    time.sleep(1.0)
    node.process.kill()
    start_s = time.monotonic()
    _, error = say.communicate(timeout=60)
    assert time.monotonic() - start_s < 15.0
    assert say.returncode == 2
    assert error == "error: the policy node says nothing for 5 s: it has ended or is stuck\n"


MORTAL = """
import time
import rclpy
from nora_msgs.action import ExecuteInstruction
from rclpy.action import ActionServer

def follow(handle):
    print("following", flush=True)
    while True:
        handle.publish_feedback(ExecuteInstruction.Feedback())
        time.sleep(0.1)

rclpy.init()
node = rclpy.create_node("policy")
server = ActionServer(node, ExecuteInstruction, "execute_instruction", follow)
print("up", flush=True)
rclpy.spin(node)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("status", "--timeout", "0.5"),
            "error: the bridge sends no status; is `nora up`",
        ),
        (("home", "--timeout", "0.5"), "error: the bridge sends no status"),
        (("estop", "--timeout", "0.5"), "error: no node offers bridge/estop"),
        (("record", "stop", "--timeout", "0.5"), "error: no node offers recorder/end_episode"),
        (("say", CUBE, "--timeout", "0.5"), "error: no policy node is there"),
        (("say", CUBE, "--topic", "--timeout", "0.5"), "error: nobody listens to the topic"),
        (("say", " "), "error: text: the instruction is empty"),
        (("say", CUBE, "--seconds", "0"), "error: seconds: expected more than 0"),
        (("mode", "fly"), "invalid choice 'fly'"),
    ],
)
def test_no_answer_and_bad_input_are_exit_code_2(arguments: tuple[str, ...], message: str) -> None:
    code, said, error = nora(*arguments)
    assert (code, said) == (2, "")
    assert message in error


def test_an_emergency_stop_imports_only_what_it_needs() -> None:
    code = "import sys, nora_bringup.cli; print({'mujoco', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
