"""A robot PC has nora_msgs, nora_core and nora_bringup, and no torch: that is enough for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import environments
import pytest
from nora_msgs.msg import CommandStatus, RecorderStatus
from sensor_msgs.msg import Image

from nora_core.ros.qos import NEWEST

TORCH = {"torch", "functorch", "torchgen"}
ROBOT_SIDE = ("bridge_controller", "chunk_player", "safety", "kinematics", "embodiment")
ROBOT_SIDE += ("observation", "recorder_audit", "recorder_episodes")


@pytest.fixture(scope="module")
def robot_pc(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Interpreter and variables of an environment with no more than `requirements/robot.txt`."""
    folder = tmp_path_factory.mktemp("robot_pc")
    more = environments.locked("python.txt") - environments.locked("robot.txt")
    return (
        folder / "bin/python",
        environments.make(folder, more | TORCH, packages=("nora_core", "nora_bringup")),
    )


@pytest.mark.parametrize("module", ["torch", "transformers", "nora_policy", "nora_training"])
def test_what_a_robot_pc_lacks_is_really_not_there(robot_pc: Any, module: str) -> None:
    done = environments.run(*robot_pc, "-c", f"import {module}")
    assert f"No module named '{module}'" in done.stderr


def test_every_module_of_the_robot_side_can_be_imported(robot_pc: Any) -> None:
    """Also what no test of the source finds: names that are put together at run time."""
    program = """
import importlib, pkgutil, nora_bringup, nora_core
for package in (nora_core, nora_bringup):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        print(importlib.import_module(module.name).__name__)
"""
    done = environments.run(*robot_pc, "-c", program)
    assert done.returncode == 0, done.stderr
    assert {"nora_core.control.controller", "nora_bringup.nodes.bridge"} < set(done.stdout.split())


@pytest.mark.timeout(300)
def test_the_unit_tests_of_the_robot_side_pass(robot_pc: Any) -> None:
    files = [f"tests/unit/test_{name}.py" for name in ROBOT_SIDE]
    paths = "pythonpath=src/nora_core src/nora_bringup tests"
    done = environments.run(
        *robot_pc, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", paths, *files
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


def test_bridge_simulator_and_recorder_start(
    robot_pc: Any, spawn: Any, ros: Any, tmp_path: Path
) -> None:
    python, env = robot_pc
    embodiment = environments.ROOT / "src/nora_bringup/config/embodiments/sim_widowx.yaml"
    statuses = ros.collect("bridge/status", CommandStatus)
    recorders = ros.collect("recorder/status", RecorderStatus)
    images = ros.collect("camera/image_raw", Image, NEWEST)
    for node, parameters in (
        ("sim", {"image_height": 64, "image_width": 64}),
        ("bridge", {}),
        ("recorder", {"record_dir": str(tmp_path / "bags")}),
    ):
        program = tmp_path / node
        program.write_text(f"#!{python}\nfrom nora_bringup.entry import {node}\n\n{node}()\n")
        program.chmod(0o755)
        spawn(str(program), {"embodiment_file": str(embodiment), **parameters}, env=env)
    ros.wait_for(lambda: images and recorders, 30.0, "an image and a status of the recorder")
    ros.wait_for(
        lambda: statuses and statuses[-1].hold_reason == CommandStatus.REASON_MODE_HOLD,
        30.0,
        "a bridge that holds because of its mode: it has the arm's state",
    )
