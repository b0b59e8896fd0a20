"""One bag, live through DDS as the policy node hears it, and offline: the same samples."""

from __future__ import annotations

import dataclasses

import demo_bags
import numpy as np
import pytest
import torch
import yaml
from demo_bags import EMBODIMENT, INSTRUCTION, START_NS, STEP_NS
from nora_msgs.msg import EndEffectorDelta
from rclpy.parameter import Parameter
from rosbags.highlevel import AnyReader
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from nora_core.normalization import normalize
from nora_core.observation import NoObservation, ObservationBuffer
from nora_core.ros import convert
from nora_core.ros.qos import NEWEST
from nora_core.types import Observation, Rejection
from nora_policy.checkpoints.untrained import make_config, make_tokenizer
from nora_policy.preprocess import Preprocessor
from nora_training.data.build import Build
from nora_training.data.dataset import Dataset
from nora_training.data.samples import Samples

NUM_STEPS, HORIZON = 16, 5
CAMERA = dataclasses.replace(EMBODIMENT.cameras[0], rotation_deg=90, crop=(4, 2, 56, 40))


class Live:
    """The image and command callbacks of a robot, on the clock of the bag."""

    def __init__(self, ros) -> None:
        self.ros, self.received, self.commands = ros, 0, []
        self.buffer = ObservationBuffer((CAMERA,))
        ros.node.set_parameters([Parameter("use_sim_time", value=True)])
        ros.node.create_subscription(Image, CAMERA.topic, self._on_image, NEWEST)
        ros.node.create_subscription(EndEffectorDelta, "bridge/command", self._on_command, 10)
        self._publishers = {
            "/nora/camera/image_raw": ros.publisher(CAMERA.topic, Image),
            "/nora/bridge/command": ros.publisher("bridge/command", EndEffectorDelta),
        }
        self._clock = ros.publisher("/clock", Clock, NEWEST)

    def _on_image(self, msg: Image) -> None:
        frame = convert.frame_from_msg(msg, CAMERA.encoding)
        self.buffer.put(CAMERA.name, frame, self.ros.now_ns())
        self.received += 1

    def _on_command(self, msg: EndEffectorDelta) -> None:
        self.commands.append(msg)
        self.received += 1

    def set_time(self, now_ns: int) -> None:
        self._clock.publish(Clock(clock=convert.to_time(now_ns)))
        self.ros.wait_for(lambda: self.ros.now_ns() == now_ns, what="the clock")

    def hear(self, topic: str, log_ns: int, data: bytes) -> None:
        if topic not in self._publishers:
            return
        self.set_time(log_ns)
        expected = self.received + 1
        self._publishers[topic].publish(data)
        self.ros.wait_for(lambda: self.received == expected, what=topic)


def replay(ros, bag) -> tuple[list[Observation | Rejection[NoObservation]], np.ndarray]:
    """What was seen at the start of every step, and the commands heard, (N, 7)."""
    live, seen = Live(ros), []
    ticks = [START_NS + STEP_NS * k for k in range(NUM_STEPS)]
    with AnyReader([bag]) as reader:
        for connection, log_ns, data in reader.messages():
            while len(seen) < NUM_STEPS and ticks[len(seen)] < log_ns:
                live.set_time(ticks[len(seen)])
                seen.append(live.buffer.snapshot(ros.now_ns(), INSTRUCTION))
            live.hear(connection.topic, log_ns, bytes(data))
    vectors = [(m.translation, m.rotation) for m in live.commands]
    rows = [[v.x, v.y, v.z, w.x, w.y, w.z] for v, w in vectors]
    return seen, np.hstack([rows, [[m.gripper] for m in live.commands]])


def late(records: list[demo_bags.Record]) -> list[demo_bags.Record]:
    """Logged as late as a camera and a network deliver."""
    rng = np.random.default_rng(5)
    delays_ns = {"camera/image_raw": 35_000_000, "bridge/command": 3_000_000}
    moved = []
    for item in records:
        limit_ns = next((d for name, d in delays_ns.items() if item.topic.endswith(name)), 1)
        log_ns = item.log_ns + int(rng.integers(0, limit_ns))
        moved.append(dataclasses.replace(item, log_ns=log_ns))
    return sorted([records[0], *moved[1:]], key=lambda item: item.log_ns)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_a_bag_gives_the_same_samples_live_and_offline(ros, tmp_path, storage):
    records = late(demo_bags.record(NUM_STEPS, images_per_step=5))
    bag = demo_bags.write(tmp_path / "bags/bag", records, storage)
    embodiment = yaml.safe_load(demo_bags.CONFIG.read_text())
    embodiment["cameras"][0] |= {"rotation_deg": 90, "crop": [4, 2, 56, 40]}
    embodiment_file = tmp_path / "sim_widowx.yaml"
    embodiment_file.write_text(yaml.safe_dump(embodiment))

    build = Build(
        bags=(tmp_path / "bags",),
        out=tmp_path / "out",
        embodiment=str(embodiment_file),
        workers=1,
    )
    results = list(build.run(build.prepare()))
    assert [result.reason for result in results] == [""]
    build.finish(results)
    dataset = Dataset.load(tmp_path / "out")
    assert dataset.embodiment.cameras == (CAMERA,)
    statistics = dataset.statistics(dataset.entries)
    offline = Samples(dataset, dataset.entries, statistics, HORIZON)

    seen, commands = replay(ros, bag)
    moving = np.delete(np.arange(NUM_STEPS), demo_bags.PAUSES)
    tokenizer = make_tokenizer()
    config = make_config(tokenizer)
    assert config.image_size == dataset.settings.image_size
    live_inputs = Preprocessor(config, tokenizer, (CAMERA,))
    offline_inputs = Preprocessor(config, tokenizer, dataset.cameras)
    ages_ms = []
    for i, (k, sample) in enumerate(zip(moving, offline, strict=True)):
        live = seen[k]
        assert isinstance(live, Observation)
        assert sample.observation.stamp_ns == live.stamp_ns
        assert sample.observation.instruction == live.instruction
        ages_ms.append((START_NS + STEP_NS * int(k) - live.stamp_ns) / 1e6)
        a, b = live_inputs(live), offline_inputs(sample.observation)
        for field in dataclasses.fields(a):
            assert torch.equal(getattr(a, field.name), getattr(b, field.name))
        chunk = normalize(commands[moving[i : i + HORIZON]], statistics)
        np.testing.assert_allclose(sample.actions_TA[sample.is_real_T], chunk, atol=1e-9)
    assert len(set(ages_ms)) > 1, "expected images of different age, or the test shows little"
