"""How fast bags become a data set, and how much memory that takes for 10 and for 200 episodes.

python benchmarks/bag_conversion.py [--seconds 10] [--episodes 10 200]

One 640x480 rgb8 camera at 30 Hz, joint states at 100 Hz, poses at 50 Hz, commands at 5 Hz. The
episodes share their storage file by hard links and differ in their labels, hence in their hashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
import yaml
from machine import processor
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from nora_core.embodiment import GRIPPER_JOINT, Embodiment
from nora_training.data.dataset import Dataset

SRC = Path(__file__).parents[1] / "src"
CONFIG = SRC / "nora_bringup/config/embodiments/sim_widowx.yaml"
COMMAND = "nora_msgs/msg/EndEffectorDelta"
START_NS = 1_700_000_000_000_000_000
HEIGHT, WIDTH, STEP_RAD = 480, 640, 1e-3


@dataclass(frozen=True, slots=True)
class Options:
    """Length of an episode, how many, and with how many processes."""

    seconds: int = 10
    episodes: tuple[int, ...] = (10, 200)
    workers: int = 2


class Recording:
    """Makes the messages of one bag."""

    def __init__(self, folder: Path, storage: StoragePlugin) -> None:
        self.store: Typestore = get_typestore(Stores.ROS2_JAZZY)
        text = (SRC / "nora_msgs/msg/EndEffectorDelta.msg").read_text()
        self.store.register(get_types_from_msg(text, COMMAND))
        self._writer = Writer(folder, version=9, storage_plugin=storage)
        self._connections: dict[str, Connection] = {}
        arm = Embodiment.load(CONFIG).arm
        assert arm is not None
        self._names = [*arm.joint_names, GRIPPER_JOINT]
        self._home = np.array([*arm.home_rad, 0.03])
        rng = np.random.default_rng(0)
        self._pixels = rng.integers(0, 256, 3 * WIDTH * HEIGHT, np.uint8)

    def write(self, seconds: int) -> None:
        with self._writer:
            for ms in range(0, 1000 * seconds, 10):
                self._joints(ms)
                if ms % 20 == 0:
                    self._pose(ms)
                if ms % 200 == 0:
                    self._command(ms)
                if ms * 30 // 1000 != (ms - 10) * 30 // 1000:
                    self._image(ms)

    def _put(self, topic: str, type_name: str, ms: int, **fields: Any) -> None:
        stamp_ns = START_NS + ms * 1_000_000
        sec, nanosec = divmod(stamp_ns, 10**9)
        stamp = self._make("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
        header = self._make("std_msgs/msg/Header", stamp=stamp, frame_id="base_link")
        if type_name == COMMAND:
            fields["observation_stamp"] = stamp
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, type_name, typestore=self.store
            )
        data = self.store.serialize_cdr(self._make(type_name, header=header, **fields), type_name)
        self._writer.write(self._connections[topic], stamp_ns, data)

    def _make(self, type_name: str, **fields: Any) -> Any:
        return self.store.types[type_name](**fields)

    def _joints(self, ms: int) -> None:
        empty = np.zeros(0)
        self._put(
            *("/nora/joint_states", "sensor_msgs/msg/JointState", ms),
            name=self._names,
            position=self._home + STEP_RAD * ms / 100,
            velocity=empty,
            effort=empty,
        )

    def _pose(self, ms: int) -> None:
        position = self._make("geometry_msgs/msg/Point", x=0.2 + ms * 1e-5, y=0.0, z=0.2)
        turn = self._make("geometry_msgs/msg/Quaternion", x=0.0, y=0.0, z=0.0, w=1.0)
        pose = self._make("geometry_msgs/msg/Pose", position=position, orientation=turn)
        self._put("/nora/bridge/ee_pose", "geometry_msgs/msg/PoseStamped", ms, pose=pose)

    def _command(self, ms: int) -> None:
        move = self._make("geometry_msgs/msg/Vector3", x=0.002, y=0.0, z=0.0)
        turn = self._make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        fields = {"translation": move, "rotation": turn, "gripper": 1.0}
        self._put("/nora/bridge/command", COMMAND, ms, **fields)

    def _image(self, ms: int) -> None:
        self._put(
            *("/nora/camera/image_raw", "sensor_msgs/msg/Image", ms),
            height=HEIGHT,
            width=WIDTH,
            encoding="rgb8",
            is_bigendian=0,
            step=3 * WIDTH,
            data=np.roll(self._pixels, ms),
        )


def make_bags(folder: Path, storage: StoragePlugin, seconds: int, num: int) -> Path:
    """`num` bags that differ in their label."""
    original = folder / f"original_{storage.name}"
    if not original.exists():
        Recording(original, storage).write(seconds)
    bags = folder / f"{storage.name}_{num}"
    for i in range(num):
        bag = bags / f"bag{i:03d}"
        shutil.copytree(original, bag, copy_function=os.link)
        (bag / "label.yaml").write_text(f"instruction: push\noutcome: success\nepisode: {i}\n")
    return bags


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a whole `nora-dataset build`; `peak_mb` of the largest process, the rest of all."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


def one_camera(folder: Path) -> Path:
    """Write the simulated robot's file with only its first camera."""
    data = yaml.safe_load(CONFIG.read_text())
    path = folder / CONFIG.name
    path.write_text(yaml.safe_dump({**data, "cameras": data["cameras"][:1]}))
    return path


def convert(bags: Path, out: Path, workers: int) -> Cost:
    config = one_camera(bags.parent)
    command = [sys.executable, "-m", "nora_training.dataset_command", "build", str(bags)]
    command += ["--out", str(out), "--embodiment", str(config), "--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    cpu_seconds = usage.ru_utime + usage.ru_stime
    if status:
        raise RuntimeError(f"nora-dataset build: expected exit code 0, got status {status}")
    return Cost(seconds, cpu_seconds, usage.ru_maxrss / 1024)


def row(storage: str, episodes: object, recorded_s: int, cost: Cost, note: str) -> str:
    speed = recorded_s / cost.seconds
    cpu = recorded_s / cost.cpu_seconds
    return f"{storage:<9}{episodes:>9}{cost.seconds:>9.1f}{speed:>13.1f}{cpu:>17.1f}{note:>9}"


def main() -> None:
    options = tyro.cli(Options)
    print(f"machine    {os.cpu_count()} x {processor()}, {options.workers} processes")
    print(f"episodes   {options.seconds} s, {WIDTH}x{HEIGHT} rgb8 at 30 Hz, to 224x224 at 5 Hz")
    print(
        f"storage  {'episodes':>9}{'seconds':>9}{'x real time':>13}{'x per CPU core':>17}  peak MB"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3):
            measure(Path(temporary), storage, options)


def measure(folder: Path, storage: StoragePlugin, options: Options) -> None:
    """Print a row per number of episodes, and one for what each further episode costs."""
    out = folder / "out"
    convert(make_bags(folder, storage, options.seconds, 1), out, 1)  # warm-up
    shutil.rmtree(out)
    costs = []
    for num in options.episodes:
        cost = convert(make_bags(folder, storage, options.seconds, num), out, options.workers)
        entries = Dataset.load(out).entries
        assert [e.num_observed for e in entries] == [5 * options.seconds] * num
        recorded_s = num * options.seconds
        print(row(storage.name, num, recorded_s, cost, f"{cost.peak_mb:.0f}"), flush=True)
        costs.append(cost)
        shutil.rmtree(out)
    if len(costs) > 1:
        first, last = costs[0], costs[-1]
        more = Cost(last.seconds - first.seconds, last.cpu_seconds - first.cpu_seconds, 0.0)
        num = options.episodes[-1] - options.episodes[0]
        print(row(storage.name, f"+{num}", num * options.seconds, more, ""), flush=True)


if __name__ == "__main__":
    main()
