"""The simulated arm with the safety chain of the bridge, in simulated time, without ROS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from nora_core.control.controller import CONTROL_PERIOD_S, ArmController
from nora_core.control.kinematics import MinkKinematics
from nora_core.control.safety_gate import SafeTarget
from nora_core.control.status import Mode
from nora_core.embodiment import Embodiment
from nora_core.sim.simulator import Simulator
from nora_core.sim.task import TaskState
from nora_core.types import ActionChunk, ArmState, Float64, Frame

START_NS = 1_000_000_000
CONTROL_PERIOD_NS = round(CONTROL_PERIOD_S * 1e9)
READY_PERIODS = 250

OnTick = Callable[[int, SafeTarget | None], None]


class Cell:
    """The simulator and the controller of the bridge in one process, stepped together.

    Every `reset` starts a trial at the same time with a new controller, so that the same calls
    give the same images and numbers.

    Attributes:
        embodiment: embodiment of the arm.
        simulator: ground truth; its clock is not the clock of the cell.
        controller: controller of the current trial.
        target: the last command; None before the first joint state.

    Raises:
        ValueError: the embodiment has no workspace, or another arm than the scene's.
    """

    def __init__(self, embodiment: Embodiment, image_hw: tuple[int, int] = (256, 256)) -> None:
        self.simulator = Simulator(embodiment, image_hw)
        assert embodiment.arm is not None  # the simulator refuses such an embodiment
        self.embodiment = embodiment
        self.kinematics = MinkKinematics(embodiment.arm)
        task = self.simulator.task_state.instruction
        self.reset(0, task)

    @property
    def now_ns(self) -> int:
        """Simulated time, ns; images, states and targets are stamped with it."""
        return START_NS + self.simulator.time_ns - self._began_ns

    @property
    def task_state(self) -> TaskState:
        return self.simulator.task_state

    def reset(self, seed: int, instruction: str, start_joints: Float64 | None = None) -> None:
        """Reset the simulator; afterwards the arm rests and the controller is in mode POLICY.

        Args:
            seed: seed of the scene.
            instruction: the task to judge.
            start_joints: (J,) rad, where the arm starts; None: at home.

        Raises:
            ValueError: the instruction is not about this scene.
        """
        self.simulator.reset(seed, instruction, start_joints)
        self._began_ns = self.simulator.time_ns
        self.controller = ArmController(self.embodiment, self.kinematics, CONTROL_PERIOD_S)
        self._advance_until(lambda: self.controller.state is not None)
        if start_joints is None:  # as an operator does before a trial
            self.controller.home(self.now_ns)
            self._advance_until(lambda: self.controller.status.mode is Mode.HOLD)
        if rejection := self.controller.set_mode(Mode.POLICY, self.now_ns):
            raise RuntimeError(f"reset: {rejection.detail}")

    def observe(self) -> dict[str, Frame]:
        """The current image of every camera, by name."""
        return {
            camera.name: Frame(self.simulator.render(camera.name), self.now_ns)
            for camera in self.embodiment.cameras
        }

    def play(self, chunk: ActionChunk) -> None:
        """Hand a chunk to the controller, which begins it at the next step boundary.

        Raises:
            RuntimeError: the controller refuses it; the message has the reason.
        """
        if rejection := self.controller.on_chunk(chunk, self.now_ns):
            raise RuntimeError(f"chunk refused, {rejection.reason.name}: {rejection.detail}")

    def advance(self, duration_s: float, on_tick: OnTick | None = None) -> None:
        """Let time pass: a whole number of control periods.

        Args:
            duration_s: a multiple of `CONTROL_PERIOD_S`.
            on_tick: called with the time and the target of every period before it passes;
                `controller.executed` and `controller.state` are of that time.

        Raises:
            ValueError: the duration is not such a multiple.
        """
        num_periods = round(duration_s / CONTROL_PERIOD_S)
        if num_periods < 0 or abs(num_periods * CONTROL_PERIOD_S - duration_s) > 1e-6:
            raise ValueError(
                f"advance: expected a multiple of {CONTROL_PERIOD_S} s, got {duration_s}"
            )
        for _ in range(num_periods):
            self._tick(on_tick)

    def close(self) -> None:
        """Release the renderer."""
        self.simulator.close()

    def arm_state(self) -> ArmState:
        """The current measurement."""
        return replace(self.simulator.arm_state(), stamp_ns=self.now_ns)

    def _tick(self, on_tick: OnTick | None) -> None:
        now_ns = self.now_ns
        self.controller.on_state(self.arm_state())
        target = self.target = self.controller.tick(now_ns)
        if target is not None:
            self.simulator.command(target.joints_rad, target.gripper)
        if on_tick is not None:
            on_tick(now_ns, target)
        self.simulator.step(CONTROL_PERIOD_S)

    def _advance_until(self, is_ready: Callable[[], bool]) -> None:
        for _ in range(READY_PERIODS):
            if is_ready():
                return
            self._tick(None)
        hold = self.controller.status.hold
        raise RuntimeError(f"reset: {hold.detail if hold else 'the arm is not home'}")
