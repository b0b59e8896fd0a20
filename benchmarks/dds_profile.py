"""What the Fast DDS profile changes: camera images received, their latency, discovery time.

Two real processes: one publishes 640x480 rgb8 images, best effort, at 30 Hz; the other, started
anew for every discovery, receives them. First with Fast DDS as it is, then with `fastdds.xml`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import rclpy
import tyro
from machine import processor
from rclpy.qos import qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image
from tqdm import tqdm

from nora_bringup.graph import fastdds_environment
from nora_core.ros import convert

RATE_HZ = 30
WIDTH, HEIGHT = 640, 480
DISCOVERY_LIMIT_S = 15.0
QOS = qos_profile_sensor_data


@dataclass(frozen=True, slots=True)
class Settings:
    """Measure `seconds` of images and `starts` discoveries; `out` also gets the table."""

    seconds: float = 5.0
    starts: int = 12
    out: Path | None = None


@dataclass(slots=True)
class Result:
    """One configuration: images sent while matched, latency of the received, discovery times."""

    num_sent: int = 0
    latency_ms: list[float] = field(default_factory=list)
    discovery_s: list[float] = field(default_factory=list)


def publish(stop: Event) -> None:
    """Images with their number in the frame id and the time of publishing in the stamp."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("publisher")
    publisher = node.create_publisher(Image, "image", QOS)
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    msg = convert.image_to_msg(pixels, 0, "")
    start, count = time.monotonic(), 0
    while not stop.is_set():
        msg.header.frame_id = str(count)
        msg.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(msg)
        count += 1
        time.sleep(max(0.0, start + count / RATE_HZ - time.monotonic()))
    node.destroy_node()
    rclpy.try_shutdown()


def receive(seconds: float, answer: Connection) -> None:
    """Send (discovery time s, sent, latencies ms); sent counts between first and last received."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    start = time.monotonic()
    node = rclpy.create_node("receiver")
    numbers: list[int] = []
    latency_ms: list[float] = []

    def on_image(msg: Image) -> None:
        sent_ns = msg.header.stamp.sec * 10**9 + msg.header.stamp.nanosec
        latency_ms.append((time.time_ns() - sent_ns) / 1e6)
        numbers.append(int(msg.header.frame_id))

    subscription = node.create_subscription(Image, "image", on_image, QOS)
    while not subscription.get_publisher_count():
        if time.monotonic() - start > DISCOVERY_LIMIT_S:
            raise TimeoutError(f"no publisher found within {DISCOVERY_LIMIT_S:g} s")
        time.sleep(0.001)
    matched = time.monotonic()
    while time.monotonic() - matched < seconds:
        rclpy.spin_once(node, timeout_sec=0.1)
    num_sent = numbers[-1] - numbers[0] + 1 if numbers else 0
    answer.send((matched - start, num_sent, latency_ms))
    node.destroy_node()
    rclpy.try_shutdown()


def measure(settings: Settings, environment: dict[str, str], name: str) -> Result:
    for variable in fastdds_environment():
        os.environ.pop(variable, None)
    os.environ.update(environment)  # the children inherit it
    context = multiprocessing.get_context("spawn")
    result, stop = Result(), context.Event()
    publisher = context.Process(target=publish, args=(stop,))
    publisher.start()
    try:
        for number in tqdm(range(settings.starts), desc=name, leave=False, disable=None):
            seconds = settings.seconds if number == 0 else 0.0
            here, there = context.Pipe(duplex=False)
            receiver = context.Process(target=receive, args=(seconds, there))
            receiver.start()
            there.close()
            discovery_s, num_sent, latency_ms = here.recv()
            receiver.join()
            result.discovery_s.append(discovery_s)
            result.num_sent += num_sent
            result.latency_ms += latency_ms
    finally:
        stop.set()
        publisher.join()
    return result


def table(default: Result, profile: Result) -> str:
    rows = {}
    for name, result in (("default", default), ("profile", profile)):
        share = len(result.latency_ms) / result.num_sent
        latency = np.percentile(result.latency_ms, (50, 99))
        discovery = np.percentile(result.discovery_s, (50, 100))
        rows[name] = np.array([share, *latency, *discovery])
    rows["profile / default"] = rows["profile"] / rows["default"]
    lines = [
        "| | images received | latency p50 ms | p99 ms | discovery p50 s | slowest s |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in rows.items():
        is_ratio = name == "profile / default"
        cells = [f"{v:.2f} x" for v in values] if is_ratio else _cells(values)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"{WIDTH}x{HEIGHT} rgb8, best effort, {RATE_HZ} Hz, {profile.num_sent} images; "
        f"{len(profile.discovery_s)} starts; {os.cpu_count()} x {processor()}."
    )
    return "\n".join(lines)


def _cells(values: np.ndarray) -> list[str]:
    share, p50, p99, discovery, slowest = values
    return [f"{share:.0%}", f"{p50:.1f}", f"{p99:.1f}", f"{discovery:.2f}", f"{slowest:.2f}"]


def main(settings: Settings) -> None:
    os.environ["ROS_DOMAIN_ID"] = str(1 + os.getpid() % 100)  # apart from what else runs here
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    default = measure(settings, {}, "default")
    text = table(default, measure(settings, fastdds_environment(), "profile"))
    print(text)
    if settings.out is not None:
        settings.out.write_text(f"# Fast DDS profile\n\n{text}\n")


if __name__ == "__main__":
    main(tyro.cli(Settings))
