"""A cluster has neither ROS nor this workspace: three packages from pip are enough."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import demo_bags
import environments
import packages
import pytest

NUM_STEPS = 12
PACKAGES = ("nora_core", "nora_policy", "nora_training")
PROTOCOL = """
embodiment: {embodiment}
checkpoints: [{{name: mine, folder: {folder}, head: flow}}]
tasks: [put the red cube on the plate]
seeds: {{start: 100000, count: 1}}
seconds: 0.4
video: none
"""


class Cluster:
    """A virtual environment with the suite installed by pip, and a folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin = folder, folder / "venv/bin"
        self.env = environments.make(folder / "venv", packages.ROS | {"nora_msgs"})
        sources = []
        for name in PACKAGES:
            source = folder / "src" / name  # a copy: a build leaves files behind
            shutil.copytree(packages.SRC / name, source)
            sources.append(str(source))
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--quiet")
        self.run("python", "-m", "pip", "install", *offline, *sources)

    def run(self, command: str, *arguments: object) -> str:
        """What the command printed; it must succeed."""
        program, *first = [str(self.bin / command)]
        done = environments.run(Path(program), self.env, *first, *map(str, arguments))
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    return Cluster(tmp_path_factory.mktemp("cluster"))


def test_there_is_no_ros_and_every_dependency_is_satisfied(cluster: Cluster) -> None:
    for module in ("rclpy", "nora_msgs", "nora_bringup"):
        done = environments.run(cluster.bin / "python", cluster.env, "-c", f"import {module}")
        assert f"No module named '{module}'" in done.stderr
    found = environments.run(cluster.bin / "python", cluster.env, "-m", "pip", "check")
    assert not [line for line in found.stdout.splitlines() if line.startswith("nora")]


@pytest.mark.timeout(300)
def test_from_bags_to_trials_without_ros(cluster: Cluster) -> None:
    out = cluster.folder
    records = demo_bags.record(NUM_STEPS)
    for number in range(3):
        part = records[: len(records) - number]
        demo_bags.write(out / f"bags/{number}", part, labels=demo_bags.LABELS)
    build = ("--embodiment", demo_bags.CONFIG, "--image-size", 56, "--val-fraction", 0)
    cluster.run("nora-dataset", "build", out / "bags", "--out", out / "data", *build)
    module = ("-m", "nora_training.sft.small", "--dataset", out / "data")
    cluster.run("python", *module, "--out", out / "untrained")
    train = ("--init", out / "untrained", "--out", out / "run", "--steps", 2, "--batch-size", 4)
    cluster.run("nora-sft", out / "data", *train)
    protocol = out / "protocol.yaml"
    trained = out / "run/checkpoint"
    protocol.write_text(PROTOCOL.format(embodiment=demo_bags.CONFIG, folder=trained))
    cluster.run("nora-trials", protocol, "--out", out / "trials", "--workers", 1)
    assert json.loads((trained / "card.json").read_text())
    (line,) = (out / "trials/trials.jsonl").read_text().splitlines()
    assert json.loads(line)["result"]["chunks"] >= 1


def test_names_need_the_package_that_holds_the_files(cluster: Cluster) -> None:
    arguments = ("demo", "--out", str(cluster.folder / "named"))
    done = environments.run(cluster.bin / "nora-trials", cluster.env, *arguments)
    assert done.returncode == 2
    assert "which is not installed here: give the path of a file" in done.stderr
