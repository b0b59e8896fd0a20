"""Forward and inverse kinematics of an arm, computed by mink on its MuJoCo model."""

from __future__ import annotations

from pathlib import Path

import mink
import mujoco
import numpy as np
from scipy.spatial.transform import Rotation

from nora_core.embodiment import Arm
from nora_core.types import Float64, Pose

ARMS = Path(__file__).parents[1] / "arms"

MAX_ITERATIONS = 20
DAMPING = 1e-9
# Iterate further than the accepted error, so that a constant target does not creep.
STOP_M, STOP_RAD = 1e-5, 1e-4
ACCEPT_M, ACCEPT_RAD = 1e-3, 1e-2
# One radian of orientation error weighs as much as this many metres (about the hand's size).
RAD_IN_M = 0.1


class MinkKinematics:
    """Kinematics of `arm`; poses are of its tool site in the base frame.

    `lower_rad` and `upper_rad`, both (J,), are the joint limits of the model. Not thread-safe.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model lacks a joint or the tool site.
    """

    def __init__(self, arm: Arm) -> None:
        path = ARMS / arm.model
        if not path.is_file():
            available = sorted(p.name for p in ARMS.glob("*.xml"))
            raise FileNotFoundError(f"arm.model: no file {arm.model!r}, available: {available}")
        model = mujoco.MjModel.from_xml_path(str(path))
        joints = [model.joint(i).name for i in range(model.njnt)]
        sites = [model.site(i).name for i in range(model.nsite)]
        missing = [name for name in arm.joint_names if name not in joints]
        if missing:
            raise ValueError(
                f"arm.joint_names: expected joints of {arm.model}, got {missing}, "
                f"available: {joints}"
            )
        if arm.tool_site not in sites:
            raise ValueError(
                f"arm.tool_site: expected a site of {arm.model}, got {arm.tool_site!r}, "
                f"available: {sites}"
            )
        ids = [model.joint(name).id for name in arm.joint_names]
        self.lower_rad: Float64 = model.jnt_range[ids, 0].copy()
        self.upper_rad: Float64 = model.jnt_range[ids, 1].copy()
        self._qpos = model.jnt_qposadr[ids]
        # Fingers rest inside their ranges, or the limits would move them.
        self._rest = np.clip(model.qpos0, model.jnt_range[:, 0], model.jnt_range[:, 1])
        self._range = np.where(model.jnt_limited, model.jnt_range.T, [[-np.inf], [np.inf]])
        self._site = arm.tool_site
        self._configuration = mink.Configuration(model)
        # Damping grows with the square of the remaining error: small steps while far away.
        self._task = mink.FrameTask(self._site, "site", 1.0, RAD_IN_M, lm_damping=0.1)
        self._limits = [mink.ConfigurationLimit(model)]

    def forward(self, joints_rad: Float64) -> Pose:
        """Pose of the tool at `joints_rad` (J,)."""
        self._set(joints_rad)
        T_base_tool = self._configuration.get_transform_frame_to_world(self._site, "site")
        rotation = Rotation.from_matrix(T_base_tool.rotation().as_matrix())
        return Pose(T_base_tool.translation().copy(), rotation)

    def inverse(self, target: Pose, seed_rad: Float64) -> Float64 | None:
        """Joints (J,) that reach `target` within 1 mm and 10 mrad, inside the joint limits.

        Searches downhill from `seed_rad` (J,) and never hops to another branch, so nearby targets
        give nearby joints. None when that fails within a fixed number of iterations.
        """
        self._task.set_target(_to_se3(target))
        self._set(np.clip(seed_rad, self.lower_rad, self.upper_rad))
        for _ in range(MAX_ITERATIONS):
            if self._is_within(STOP_M, STOP_RAD):
                break
            change = self._free_change()
            if change is None:
                change = self._limited_change()
            if change is None:
                return None
            self._configuration.integrate_inplace(change, 1.0)
        if not self._is_within(ACCEPT_M, ACCEPT_RAD):
            return None
        joints_rad: Float64 = self._configuration.q[self._qpos]
        return joints_rad.clip(self.lower_rad, self.upper_rad)

    def _free_change(self) -> Float64 | None:
        """The minimum of `_limited_change` if no limit is in its way, without a solver."""
        jacobian, error, damping = self._task.compute_qp_residual(self._configuration)
        hessian = jacobian.T @ jacobian
        hessian.flat[:: len(hessian) + 1] += damping + DAMPING
        change: Float64 = np.linalg.solve(hessian, error @ jacobian)
        room = self._range - self._configuration.q
        room *= self._limits[0].gain
        is_free = np.all(change >= room[0]) and np.all(change <= room[1])
        return change if is_free else None

    def _limited_change(self) -> Float64 | None:
        try:
            change: Float64 = mink.solve_ik(
                self._configuration,
                [self._task],
                dt=1.0,
                solver="quadprog",
                damping=DAMPING,
                limits=self._limits,
            )
        except mink.NoSolutionFound:
            return None
        return change

    def _set(self, joints_rad: Float64) -> None:
        q = self._rest.copy()
        q[self._qpos] = joints_rad
        self._configuration.update(q)

    def _is_within(self, tolerance_m: float, tolerance_rad: float) -> bool:
        error = self._task.compute_error(self._configuration)
        return bool(
            np.linalg.norm(error[:3]) < tolerance_m and np.linalg.norm(error[3:]) < tolerance_rad
        )


def _to_se3(pose: Pose) -> mink.SE3:
    x, y, z, w = pose.rotation.as_quat()
    return mink.SE3(wxyz_xyz=np.array([w, x, y, z, *pose.position_m]))
