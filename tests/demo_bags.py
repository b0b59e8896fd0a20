"""Bags of a scripted motion of the simulated arm, written without ROS, for tests to spoil."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from scipy.spatial.transform import Rotation

from nora_core.control.kinematics import MinkKinematics
from nora_core.embodiment import GRIPPER_JOINT, Embodiment
from nora_core.sim.simulator import Simulator
from nora_core.types import Pose

SRC = Path(__file__).parents[1] / "src"
SIM = SRC / "nora_bringup/config/embodiments/sim_widowx.yaml"
FOLDER = tempfile.TemporaryDirectory()


def one_camera() -> Path:
    """The simulated robot with its first camera alone: bags are smaller, and made sooner."""
    data = yaml.safe_load(SIM.read_text())
    path = Path(FOLDER.name, SIM.name)
    path.write_text(yaml.safe_dump({**data, "cameras": data["cameras"][:1]}))
    return path


CONFIG = one_camera()
EMBODIMENT = Embodiment.load(CONFIG)
START_NS = 1_700_000_000_123_456_789
TICK_NS, STEP_NS = 20_000_000, 200_000_000
INSTRUCTION = "put the red cube on the plate"
LABELS = {"instruction": INSTRUCTION, "outcome": "success", "embodiment": "sim_widowx"}
PAUSES = (6, 7)  # steps that move nothing


@dataclass
class Record:
    """A message and when it was logged."""

    topic: str
    type_name: str
    log_ns: int
    msg: Any


@cache
def typestore() -> Any:
    """The types of Jazzy and of nora_msgs."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for path in sorted((SRC / "nora_msgs/msg").glob("*.msg")):
        store.register(get_types_from_msg(path.read_text(), f"nora_msgs/msg/{path.stem}"))
    return store


def message(type_name: str, **fields: Any) -> Any:
    return typestore().types[type_name](**fields)


def header(stamp_ns: int, frame_id: str = "base_link") -> Any:
    sec, nanosec = divmod(stamp_ns, 10**9)
    stamp = message("builtin_interfaces/msg/Time", sec=sec, nanosec=nanosec)
    return message("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def vector(values: Sequence[float], kind: str = "Vector3") -> Any:
    x, y, z = map(float, values)
    return message(f"geometry_msgs/msg/{kind}", x=x, y=y, z=z)


def image(rgb: np.ndarray, stamp_ns: int) -> Record:
    height, width, _ = rgb.shape
    msg = message(
        "sensor_msgs/msg/Image",
        header=header(stamp_ns, "camera"),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=3 * width,
        data=np.ascontiguousarray(rgb).ravel(),
    )
    return Record("/nora/camera/image_raw", "sensor_msgs/msg/Image", stamp_ns, msg)


def command(action: np.ndarray, stamp_ns: int, log_ns: int | None = None) -> Record:
    type_name = "nora_msgs/msg/EndEffectorDelta"
    msg = message(
        type_name,
        header=header(stamp_ns),
        translation=vector(action[:3]),
        rotation=vector(action[3:6]),
        gripper=float(action[6]),
        observation_stamp=header(stamp_ns).stamp,
    )
    return Record("/nora/bridge/command", type_name, log_ns or stamp_ns, msg)


def pose(at: Pose, stamp_ns: int) -> Record:
    x, y, z, w = at.rotation.as_quat().tolist()
    quaternion = message("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)
    inner = message(
        "geometry_msgs/msg/Pose",
        position=vector(at.position_m, "Point"),
        orientation=quaternion,
    )
    type_name = "geometry_msgs/msg/PoseStamped"
    msg = message(type_name, header=header(stamp_ns), pose=inner)
    return Record("/nora/bridge/ee_pose", type_name, stamp_ns, msg)


def joints(names: Sequence[str], values: Sequence[float], stamp_ns: int) -> Record:
    empty = np.zeros(0)
    msg = message(
        "sensor_msgs/msg/JointState",
        header=header(stamp_ns, ""),
        name=list(names),
        position=np.array(values, np.float64),
        velocity=empty,
        effort=empty,
    )
    return Record("/nora/joint_states", "sensor_msgs/msg/JointState", stamp_ns, msg)


def text(data: str, log_ns: int) -> Record:
    type_name = "std_msgs/msg/String"
    return Record("/nora/instruction", type_name, log_ns, message(type_name, data=data))


def outcome(value: int, log_ns: int) -> Record:
    type_name = "nora_msgs/msg/TaskOutcome"
    fields = {"instruction": INSTRUCTION, "outcome": value, "distractor_grasps": 0}
    msg = message(type_name, header=header(log_ns, ""), **fields)
    return Record("/nora/task_outcome", type_name, log_ns, msg)


def script(num_steps: int) -> np.ndarray:
    """(num_steps, 7) actions: a curve with a turn of the hand, a pause, and the gripper shut."""
    k = np.arange(num_steps)
    actions = np.zeros((num_steps, 7))
    actions[:, 0] = 0.012 * np.cos(0.5 * k)
    actions[:, 1] = 0.015 * np.sin(0.4 * k)
    actions[:, 2] = np.where(k < num_steps / 2, -0.006, 0.004)
    actions[:, 5] = 0.06 * np.sin(0.3 * k + 0.2)
    actions[:, 6] = k < num_steps / 2
    actions[[p for p in PAUSES if p < num_steps], :6] = 0.0
    return actions


def record(
    num_steps: int = 16, image_hw: tuple[int, int] = (48, 64), images_per_step: int = 2
) -> list[Record]:
    """The messages of one demonstration in the order they were logged; a copy of your own."""
    return copy.copy(_record(num_steps, image_hw, images_per_step))


@cache
def _record(num_steps: int, image_hw: tuple[int, int], images_per_step: int) -> list[Record]:
    sim = Simulator(EMBODIMENT, image_hw)
    try:
        return list(_run(sim, num_steps, images_per_step))
    finally:
        sim.close()


def _run(sim: Simulator, num_steps: int, images_per_step: int) -> Iterator[Record]:
    arm = EMBODIMENT.arm
    assert arm is not None
    kinematics = MinkKinematics(arm)
    sim.reset(3, INSTRUCTION)
    target_rad = sim.arm_state().joints_rad
    target = kinematics.forward(target_rad)
    ticks = STEP_NS // TICK_NS
    yield image(sim.render(), START_NS)
    for action in script(num_steps):
        yield command(action, START_NS + sim.time_ns)
        turn = Rotation.from_euler("xyz", action[3:6]).as_rotvec() / ticks
        for tick in range(1, ticks + 1):
            turned = Rotation.from_rotvec(turn) * target.rotation
            target = Pose(target.position_m + action[:3] / ticks, turned)
            found = kinematics.inverse(target, target_rad)
            assert found is not None, "the script leaves the arm's reach"
            target_rad = found
            sim.command(target_rad, action[6])
            sim.step(TICK_NS * 1e-9)
            state, now_ns = sim.arm_state(), START_NS + sim.time_ns
            finger = EMBODIMENT.gripper.to_driver(state.gripper)
            names = (*arm.joint_names, GRIPPER_JOINT)
            yield joints(names, [*state.joints_rad, finger], now_ns)
            yield pose(kinematics.forward(state.joints_rad), now_ns)
            if tick * images_per_step % ticks == 0:
                yield image(sim.render(), now_ns)


def write(
    folder: Path,
    records: Sequence[Record],
    storage: str = "mcap",
    labels: dict[str, str] | None = None,
    compress: bool = False,
) -> Path:
    """A rosbag2 folder with `records`; `labels` as its custom data, `LABELS` if not given."""
    plugin = StoragePlugin.MCAP if storage == "mcap" else StoragePlugin.SQLITE3
    writer = Writer(folder, version=9, storage_plugin=plugin)
    if compress:
        mode = CompressionMode.STORAGE if storage == "mcap" else CompressionMode.MESSAGE
        writer.set_compression(mode, CompressionFormat.ZSTD)
    store, connections = typestore(), {}
    with writer:
        for key, value in (LABELS if labels is None else labels).items():
            writer.set_custom_data(key, value)
        for item in records:
            if item.topic not in connections:
                connections[item.topic] = writer.add_connection(
                    item.topic, item.type_name, typestore=store
                )
            data = store.serialize_cdr(item.msg, item.type_name)
            writer.write(connections[item.topic], item.log_ns, data)
    return folder
