"""A policy in the simulated cell, in closed loop without ROS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from nora_core.embodiment import Embodiment
from nora_core.sim.cell import Cell
from nora_core.sim.task import parse
from nora_core.trials.record import Job, Result, Setup
from nora_core.types import ActionChunk, Observation
from nora_policy.policy import Policy
from nora_training.evaluation.rollout_video import RolloutVideo

HOLD_NS = 500_000_000  # the task must stay done for this long


class Agent(Protocol):
    """What is tested, for example a `nora_policy.policy.Policy`."""

    def infer(self, observation: Observation) -> ActionChunk: ...

    def reseed(self, seed: int) -> None: ...


def roll_out(cell: Cell, agent: Agent, job: Job, setup: Setup) -> Result:
    """Run one trial from the reset of the scene to its end; deterministic.

    The agent sees images from `setup.delay_s` before each step boundary at which the bridge begins
    a new chunk. The trial ends when the task has stayed done for `HOLD_NS`, or when its time is
    up; the state of the scene at that moment is the outcome.

    Raises:
        ValueError: the instruction is not about the scene.
    """
    cell.reset(job.seed, job.instruction)
    agent.reseed(job.seed)
    watch = Watch(cell)
    action = cell.embodiment.action
    num_steps = action.execute_steps if action.execution == "n_step" else 1
    rest_s = num_steps * action.step_period_s - setup.delay_s
    end_ns = cell.now_ns + round(setup.seconds * 1e9)
    chunks, error = 0, ""
    with RolloutVideo(cell, job, setup) as video:

        def on_tick(now_ns: int, target: object) -> None:
            watch.look(now_ns)
            video.look(now_ns)

        while cell.now_ns < end_ns and not watch.is_over:
            observation = observe(cell, job)
            video.seen(observation)
            try:
                chunk = agent.infer(observation)
                cell.advance(setup.delay_s, on_tick)
                cell.play(chunk)
            except (ValueError, RuntimeError) as problem:  # of this policy, in this scene
                error = str(problem)
                break
            chunks += 1
            cell.advance(rest_s, on_tick)
        result = watch.result(chunks, error)
        video.finish(result)
    return result


def observe(cell: Cell, job: Job) -> Observation:
    """Images and instruction that the policy is given under the job's condition."""
    frames = cell.observe()
    images = [frame.rgb_HW3 for frame in frames.values()]
    if job.condition == "blank_image":
        images = [np.zeros_like(image) for image in images]
    stamp_ns = min(frame.stamp_ns for frame in frames.values())
    return Observation(tuple(images), job.policy_instruction, stamp_ns)


class Watch:
    """Follows the task status during a trial in the cell, which has just been reset."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._start_ns = cell.now_ns
        self._grasp_ns: int | None = None
        self._done_ns: int | None = None

    def look(self, now_ns: int) -> None:
        state = self._cell.task_state
        if state.partial and self._grasp_ns is None:
            self._grasp_ns = now_ns
        if not state.success:
            self._done_ns = None
        elif self._done_ns is None:
            self._done_ns = now_ns

    @property
    def is_over(self) -> bool:
        return self._done_ns is not None and self._cell.now_ns - self._done_ns >= HOLD_NS

    def result(self, chunks: int, error: str) -> Result:
        state, simulator = self._cell.task_state, self._cell.simulator
        task = parse(state.instruction, simulator.objects, simulator.receptacles)
        places = simulator.object_positions
        target = task.object if task.target is None else task.target
        tool_m = self._cell.kinematics.forward(self._cell.arm_state().joints_rad).position_m
        return Result(
            outcome=state.outcome,
            reached=state.reached,
            distractor_grasps=state.distractor,
            chunks=chunks,
            duration_s=self._seconds(self._cell.now_ns),
            grasp_s=None if self._grasp_ns is None else self._seconds(self._grasp_ns),
            object_m=_apart(places[task.object], places[target]),
            tool_m=_apart(places[task.object], tool_m),
            error=error,
        )

    def _seconds(self, now_ns: int) -> float:
        return round((now_ns - self._start_ns) * 1e-9, 3)


def _apart(a_m: np.ndarray, b_m: np.ndarray) -> float:
    return round(float(np.linalg.norm((a_m - b_m)[:2])), 4)


def open_runner(setup: Setup) -> Callable[[Job], Result]:
    """What runs the trials of a worker process, on one CPU thread.

    Raises:
        ValueError, OSError: the embodiment cannot be used; later, a checkpoint cannot.
    """
    torch.set_num_threads(1)
    embodiment = Embodiment.load(Path(setup.embodiment))
    cell = Cell(embodiment, (setup.image_size, setup.image_size))

    @functools.lru_cache(maxsize=1)
    def load(folder: str, head: str) -> Policy:
        return Policy.load(Path(folder), embodiment, "cpu", seed=0, head=head)

    return lambda job: roll_out(cell, load(job.folder, job.head), job, setup)
