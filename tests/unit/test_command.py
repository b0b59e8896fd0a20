"""The ways in which a command line ends."""

import signal
import subprocess
import sys

import pytest

from nora_core import files

PROGRAM = """
import os, signal, subprocess
from nora_core.command import run_command
def body():
    {body}
run_command(body, "stopped; the same command goes on from here")
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(body=body)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return None", 0, ""),
        ("return 1", 1, ""),
        ("raise ValueError('steps: expected 1 or more, got 0')", 2, "error: steps: expected 1 or"),
        ("raise FileNotFoundError('x: no such file')", 2, "error: x: no such file"),
        ("subprocess.run(['false'], check=True)", 2, "error: Command '['false']' returned"),
        (f"os.kill(os.getpid(), {int(signal.SIGINT)})", 130, "stopped; the same command"),
        (f"os.kill(os.getpid(), {int(signal.SIGTERM)})", 130, "stopped; the same command"),
    ],
)
def test_every_end_has_its_exit_code_and_one_line(body, code, said):
    done = run(body)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_ours_keeps_its_traceback():
    done = run("return {}['missing']")
    assert done.returncode == 1
    assert "KeyError: 'missing'" in done.stderr


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "facts.json"
    files.write_json(path, {"a": 1})
    before = path.read_text()

    def fail_halfway() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
