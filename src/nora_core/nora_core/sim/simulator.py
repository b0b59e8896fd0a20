"""The simulated WidowX-250s at its table: physics, cameras and the judge, without ROS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from nora_core.embodiment import GRIPPER_JOINT, Arm, Embodiment
from nora_core.sim.rendering import Renderer
from nora_core.sim.task import Judge, ObjectState, TaskState, parse
from nora_core.types import ArmState, Float64, Pose

SCENE = Path(__file__).parent / "scene.xml"
ARM_MODEL = "wx250s.xml"  # the arm that the scene includes
# Once per tick the commands advance and the judge is updated.
TICK_NS = 10_000_000
# Maximum speeds of the servos and the gripper of the WidowX.
JOINT_SPEED_RAD_S = math.pi
GRIPPER_SPEED_M_S = 0.1
# Area where objects are placed at reset: in view and in reach with the gripper pointing down.
PLACEMENT_MIN_M = (0.19, -0.20)
PLACEMENT_MAX_M = (0.39, 0.20)
PLACEMENT_GAP_M = 0.045  # between footprints, so that an open finger fits
PLACEMENT_DRAWS = 64
PLACEMENT_YAW_RAD = 0.3


class Simulator:
    """Simulates as fast as possible; its time is the sum of all steps and is monotonic.

    `objects` are the names of the bodies that can be grasped, `receptacles` of the places to put
    them.

    Raises:
        ValueError: the embodiment has no arm, another arm or joints that the scene lacks.
    """

    def __init__(
        self,
        embodiment: Embodiment,
        image_hw: tuple[int, int] = (256, 256),
        shadows: bool = False,
    ) -> None:
        self._arm = _require_arm(embodiment)
        self._gripper = embodiment.gripper
        self._image_hw, self._shadows = image_hw, shadows
        self._model = model = mujoco.MjModel.from_xml_path(str(SCENE))
        self._data = mujoco.MjData(model)
        self._renderers: dict[tuple[int, int], Renderer] = {}

        names = (*self._arm.joint_names, GRIPPER_JOINT)
        available = [model.joint(i).name for i in range(model.njnt)]
        if missing := [name for name in names if name not in available]:
            raise ValueError(
                f"arm.joint_names: expected joints of {SCENE.name}, got {missing}, "
                f"available: {available}"
            )
        self._qpos = model.jnt_qposadr[[model.joint(name).id for name in names]]
        self._ctrl = [model.actuator(name).id for name in (*self._arm.joint_names, "gripper")]
        speed = [JOINT_SPEED_RAD_S] * len(self._arm.joint_names) + [GRIPPER_SPEED_M_S]
        self._max_change = np.array(speed) * TICK_NS * 1e-9
        self._substeps = round(TICK_NS * 1e-9 / model.opt.timestep)

        bodies = [model.body(i) for i in range(model.nbody)]
        self._body_names = [body.name for body in bodies]
        self._free = {b.name: int(b.jntadr[0]) for b in bodies if _is_free(model, b)}
        self.objects = tuple(self._free)
        self.receptacles = tuple(b.name for b in bodies if b.mocapid[0] >= 0)
        self._rest_z_m = {b.name: float(b.pos[2]) for b in bodies}
        self._radius_m = {b.name: float(b.user[0]) for b in bodies}
        self._ticks = 0
        self.reset(0, f"put the {self.objects[0]} on the {self.receptacles[0]}")

    @property
    def time_ns(self) -> int:
        """Simulated time since creation; a reset does not change it."""
        return self._ticks * TICK_NS

    @property
    def joint_names(self) -> tuple[str, ...]:
        return self._arm.joint_names

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras of the scene."""
        return tuple(self._model.camera(i).name for i in range(self._model.ncam))

    @property
    def task_state(self) -> TaskState:
        return self._judge.state

    @property
    def radii_m(self) -> dict[str, float]:
        """Radii of the footprints of the objects, then of the receptacles."""
        return {name: self._radius_m[name] for name in (*self.objects, *self.receptacles)}

    @property
    def object_poses(self) -> dict[str, Pose]:
        """Poses of the objects, then of the receptacles, in the base frame."""
        poses = {}
        for name in (*self.objects, *self.receptacles):
            body = self._data.body(name)
            poses[name] = Pose(body.xpos.copy(), Rotation.from_matrix(body.xmat.reshape(3, 3)))
        return poses

    @property
    def object_positions(self) -> dict[str, Float64]:
        """Positions (3,) of the objects, then of the receptacles, in the base frame, m."""
        return {name: pose.position_m for name, pose in self.object_poses.items()}

    def reset(self, seed: int, instruction: str, start_joints: Float64 | None = None) -> None:
        """Place everything again and start to judge a task; the same seed gives the same scene.

        Args:
            seed: of the scene.
            instruction: the task.
            start_joints: (J,) rad, start of the arm; None: its home pose.

        Raises:
            ValueError: the instruction is not about this scene; nothing has changed then.
        """
        judge = Judge(instruction, parse(instruction, self.objects, self.receptacles))
        mujoco.mj_resetData(self._model, self._data)
        self._place(np.random.default_rng(seed))
        home_m = self._gripper.to_driver(self._arm.home_gripper)
        start_rad = self._arm.home_rad if start_joints is None else start_joints
        self._target = np.array([*start_rad, home_m])
        self._data.qpos[self._qpos] = self._target
        self._data.joint("right_finger").qpos[0] = -home_m
        self._data.ctrl[self._ctrl] = self._target
        mujoco.mj_forward(self._model, self._data)
        self._judge = judge

    def command(self, joints_rad: Float64, gripper: float) -> None:
        """Move towards `joints_rad` (J,) and the opening `gripper` (0 closed ... 1 open).

        The servos go there at their own greatest speed and stop at their limits.

        Raises:
            ValueError: wrong shape or a value that is not finite; the previous command stays.
        """
        values = np.array([*joints_rad, self._gripper.to_driver(gripper)], np.float64)
        if values.shape != self._target.shape:
            expected = len(self._target) - 1
            raise ValueError(f"command: expected {expected} joints, got {len(values) - 1}")
        if not np.isfinite(values).all():
            raise ValueError(f"command: expected finite values, got {joints_rad}, {gripper}")
        limits = self._model.actuator_ctrlrange[self._ctrl]
        self._target = values.clip(limits[:, 0], limits[:, 1])

    def command_by_name(self, names: Sequence[str], positions: Sequence[float]) -> None:
        """Command named joints in any order, the finger in the driver's unit.

        Raises:
            ValueError: not exactly these names once each, or not as many finite values.
        """
        expected = (*self._arm.joint_names, GRIPPER_JOINT)
        if sorted(names) != sorted(expected) or len(positions) != len(names):
            raise ValueError(
                f"command: expected one position for each of {list(expected)}, "
                f"got {list(names)} and {len(positions)} positions"
            )
        value = dict(zip(names, positions, strict=True))
        opening = self._gripper.from_driver(value[GRIPPER_JOINT])
        self.command(np.array([value[name] for name in self._arm.joint_names]), opening)

    def step(self, duration_s: float) -> TaskState:
        """Let time pass: a whole number of ticks of 10 ms, at least one.

        Raises:
            ValueError: another duration, or one that is no such number of ticks.
        """
        tick_s = TICK_NS * 1e-9
        num_ticks = round(duration_s / tick_s) if math.isfinite(duration_s) else 0
        if num_ticks < 1 or abs(num_ticks * tick_s - duration_s) > 1e-6:
            raise ValueError(f"step: expected a multiple of {tick_s} s, got {duration_s}")
        for _ in range(num_ticks):
            ctrl = self._data.ctrl[self._ctrl]
            change = (self._target - ctrl).clip(-self._max_change, self._max_change)
            self._data.ctrl[self._ctrl] = ctrl + change
            mujoco.mj_step(self._model, self._data, self._substeps)
            self._ticks += 1
            self._judge.update(self.time_ns, self._observe_objects())
        return self._judge.state

    def arm_state(self) -> ArmState:
        """Measured joints and gripper opening, stamped with `time_ns`."""
        values = self._data.qpos[self._qpos]
        opening = self._gripper.from_driver(values[-1])
        return ArmState(values[:-1].copy(), float(np.clip(opening, 0.0, 1.0)), self.time_ns)

    def render(
        self, camera: str = "primary", image_hw: tuple[int, int] | None = None
    ) -> NDArray[np.uint8]:
        """The current RGB image (H, W, 3) of a camera of the scene.

        Args:
            camera: one of `cameras`.
            image_hw: its size if not that of the simulator; each size has a renderer.

        Raises:
            ValueError: there is no such camera, or the image size is out of range.
            OSError: no OpenGL backend works.
        """
        height, width = size = image_hw or self._image_hw
        if size not in self._renderers:
            self._renderers[size] = Renderer(
                self._model, height=height, width=width, shadows=self._shadows
            )
        return self._renderers[size].render(self._data, camera)

    def close(self) -> None:
        """Release the renderers; the simulator can still be used."""
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _place(self, rng: np.random.Generator) -> None:
        """Draw one place after another, receptacles first; start again when no room is left."""
        names = (*self.receptacles, *self.objects)
        radii_m = np.array([self._radius_m[name] for name in names])
        xy_m = np.zeros((0, 2))
        while len(xy_m) < len(names):
            draws_m = rng.uniform(PLACEMENT_MIN_M, PLACEMENT_MAX_M, (PLACEMENT_DRAWS, 1, 2))
            apart_m = radii_m[: len(xy_m)] + radii_m[len(xy_m)] + PLACEMENT_GAP_M
            fits = (np.linalg.norm(draws_m - xy_m, axis=-1) >= apart_m).all(axis=-1)
            xy_m = np.vstack([xy_m, draws_m[fits.argmax()]]) if fits.any() else np.zeros((0, 2))
        for name, (x, y) in zip(names, xy_m, strict=True):
            position = (x, y, self._rest_z_m[name])
            if name in self.receptacles:
                self._data.mocap_pos[self._model.body(name).mocapid[0]] = position
                continue
            yaw = rng.uniform(-PLACEMENT_YAW_RAD, PLACEMENT_YAW_RAD)
            start = self._model.jnt_qposadr[self._free[name]]
            quaternion = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
            self._data.qpos[start : start + 7] = (*position, *quaternion)

    def _observe_objects(self) -> Mapping[str, ObjectState]:
        touches: dict[str, set[str]] = {name: set() for name in self._body_names}
        for first, second in self._model.geom_bodyid[self._data.contact.geom]:
            touches[self._body_names[first]].add(self._body_names[second])
            touches[self._body_names[second]].add(self._body_names[first])
        return {
            name: self._observe(name, touches[name]) for name in (*self.objects, *self.receptacles)
        }

    def _observe(self, name: str, touches: set[str]) -> ObjectState:
        position_m = self._data.body(name).xpos.copy()
        speed_m_s = 0.0
        if name in self._free:
            start = self._model.jnt_dofadr[self._free[name]]
            speed_m_s = float(np.linalg.norm(self._data.qvel[start : start + 3]))
        lift_m = float(position_m[2]) - self._rest_z_m[name]
        tool_m = float(np.linalg.norm(self._data.site(self._arm.tool_site).xpos - position_m))
        radius_m = self._radius_m[name]
        return ObjectState(
            position_m=position_m,
            radius_m=radius_m,
            lift_m=lift_m,
            speed_m_s=speed_m_s,
            touches=frozenset(touches),
            tool_m=tool_m,
        )


def _is_free(model: mujoco.MjModel, body: Any) -> bool:
    return bool(
        body.jntnum[0] == 1 and model.jnt_type[body.jntadr[0]] == mujoco.mjtJoint.mjJNT_FREE
    )


def _require_arm(embodiment: Embodiment) -> Arm:
    arm = embodiment.arm
    if arm is None or arm.model != ARM_MODEL:
        got = None if arm is None else arm.model
        raise ValueError(f"arm.model: expected {ARM_MODEL}, the arm of {SCENE.name}, got {got}")
    return arm
