"""What the recorder loses: two 640x480 rgb8 cameras at 30 Hz and joint states at 100 Hz.

Three real processes over DDS with the suite's profile: one publishes numbered messages (images
best effort, as cameras do), the recorder writes them, this one counts what is in the bag.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import rclpy
import tyro
import yaml
from machine import processor
from nora_msgs.msg import RecorderStatus
from nora_msgs.srv import EndEpisode, StartEpisode
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, JointState
from tqdm import tqdm

from nora_bringup.graph import fastdds_environment
from nora_core.paths import embodiment_file
from nora_core.ros import convert

CAMERAS = ("/camera_0/image_raw", "/camera_1/image_raw")
STATES = "/joint_states"
CAMERA_HZ, STATE_HZ = 30, 100
WIDTH, HEIGHT = 640, 480
WAIT_S = 30.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Settings:
    """Record `seconds`; `record_dir` chooses the disk, `out` also gets the table."""

    seconds: float = 30.0
    record_dir: Path | None = None
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What was in the bag; counts and gaps in the numbering by topic, share of one core."""

    counts: dict[str, int]
    lost: dict[str, int]
    dropped: int
    reasons: str
    num_bytes: int
    seconds: float
    cpu_share: float


def publish(stop: Event) -> None:
    """Every message carries its number in the frame id."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("publisher")
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    image = convert.image_to_msg(pixels, 0, "")
    state = JointState(name=[f"joint_{i}" for i in range(8)], position=[0.0] * 8)
    cameras = [node.create_publisher(Image, name, qos_profile_sensor_data) for name in CAMERAS]
    states = node.create_publisher(JointState, STATES, 10)
    start = time.monotonic()
    counts = [0, 0]
    while not stop.is_set():
        ready_s = [counts[0] / CAMERA_HZ, counts[1] / STATE_HZ]
        which = int(ready_s[1] < ready_s[0])
        time.sleep(max(0.0, start + ready_s[which] - time.monotonic()))
        msg = (image, state)[which]
        msg.header.frame_id = str(counts[which])
        msg.header.stamp = node.get_clock().now().to_msg()
        for publisher in (cameras, [states])[which]:
            publisher.publish(msg)
        counts[which] += 1
    node.destroy_node()
    rclpy.try_shutdown()


@contextmanager
def recorder(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The recorder node, as a process; bags go to `folder`."""
    data = yaml.safe_load(embodiment_file("sim_widowx").read_text(encoding="utf-8"))
    data["record"], data["record_optional"] = [*CAMERAS, STATES], []
    file = folder / "robot.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    command = [sys.executable, "-m", "nora_bringup.nodes.recorder", "--ros-args"]
    for parameter in (f"embodiment_file:={file}", f"record_dir:={folder}"):
        command += ["-p", parameter]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def publisher() -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=publish, args=(stop,))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def wait(node: Node, is_done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:g} s for {what}")
        rclpy.spin_once(node, timeout_sec=0.1)


def call(node: Node, name: str, kind: type, request: object) -> object:
    client = node.create_client(kind, name)
    wait(node, client.service_is_ready, name)
    future = client.call_async(request)
    wait(node, future.done, f"an answer of {name}")
    response = future.result()
    if response.error_code:
        raise RuntimeError(f"{name}: {response.error_msg}")
    return response


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / CLOCK_TICKS


def measure(settings: Settings, node: Node, folder: Path) -> Result:
    statuses: list[RecorderStatus] = []
    node.create_subscription(RecorderStatus, "recorder/status", statuses.append, 10)
    with recorder(folder) as process, publisher():
        wait(node, lambda: bool(statuses and not statuses[-1].unpublished), "the publishers")
        call(node, "recorder/start_episode", StartEpisode, StartEpisode.Request(instruction="go"))
        start_s, start_cpu_s = time.monotonic(), cpu_s(process.pid)
        for _ in tqdm(range(round(settings.seconds)), desc="recording", leave=False, disable=None):
            end_s = time.monotonic() + 1.0
            while time.monotonic() < end_s:
                rclpy.spin_once(node, timeout_sec=0.1)
        seconds = time.monotonic() - start_s
        used_s = cpu_s(process.pid) - start_cpu_s
        dropped = statuses[-1].dropped
        ended = call(node, "recorder/end_episode", EndEpisode, EndEpisode.Request(outcome=1))
    return _count(ended, dropped, seconds, used_s / seconds)


def _count(ended: EndEpisode.Response, dropped: int, seconds: float, cpu_share: float) -> Result:
    numbers: dict[str, list[int]] = {name: [] for name in (*CAMERAS, STATES)}
    kinds = {**dict.fromkeys(CAMERAS, Image), STATES: JointState}
    with Reader(Path(ended.path)) as reader:
        for connection, _, data in reader.messages():
            msg = deserialize_message(bytes(data), kinds[connection.topic])
            numbers[connection.topic].append(int(msg.header.frame_id))
    num_bytes = sum(path.stat().st_size for path in Path(ended.path).glob("*.mcap"))
    counts = {name: len(found) for name, found in numbers.items()}
    lost = {name: found[-1] - found[0] + 1 - len(found) for name, found in numbers.items()}
    return Result(counts, lost, dropped, ended.audit, num_bytes, seconds, cpu_share)


def table(result: Result) -> str:
    lines = ["| topic | recorded | lost |", "|---|---|---|"]
    lines += [f"| {name} | {n} | {result.lost[name]} |" for name, n in result.counts.items()]
    rate = result.num_bytes / result.seconds / 1e6
    lines += [
        "",
        f"{result.seconds:.0f} s, {rate:.1f} MB/s; recorder {result.cpu_share:.0%} of a core, "
        f"{result.dropped} dropped for the disk; audit: {result.reasons or 'green'}.",
        "",
        f"{WIDTH}x{HEIGHT} rgb8 at {CAMERA_HZ} Hz, joint states at {STATE_HZ} Hz; "
        f"{os.cpu_count()} x {processor()}.",
    ]
    return "\n".join(lines)


def main(settings: Settings) -> None:
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)  # apart from what else runs here
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.update(fastdds_environment())  # the children inherit it
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("recorder_throughput")
    try:
        with tempfile.TemporaryDirectory(dir=settings.record_dir) as name:
            text = table(measure(settings, node, Path(name)))
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    print(text)
    if settings.out is not None:
        settings.out.write_text(f"# Recorder throughput\n\n{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Settings))
