"""Video of a trial: the scene, the policy's images and instruction, and the progress."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from nora_core.sim.cell import Cell
from nora_core.trials.record import Job, Result, Setup
from nora_core.trials.video import SIZE, UInt8, Video, beside, beside_width
from nora_core.types import Observation, Outcome

CAMERA = "video"  # preferred camera of the scene, if it has one
PERIOD_NS = 100_000_000
LAST_PICTURES = 15


class RolloutVideo:
    """Records a trial; the file is kept only if the setup asks for a video of its outcome."""

    def __init__(self, cell: Cell, job: Job, setup: Setup) -> None:
        self._cell, self._job, self._setup = cell, job, setup
        self._start_ns = self._next_ns = cell.now_ns
        self._images: tuple[UInt8, ...] = ()
        self._video: Video | None = None
        self._is_kept = False
        if setup.video != "none":
            folder = Path(setup.video_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._path = folder / f"{job.key}.mp4"
            self._partial = folder / f".{job.key}.mp4"
            available = cell.simulator.cameras
            self._camera = CAMERA if CAMERA in available else available[0]
            self._video = Video(self._partial, beside_width(len(cell.embodiment.cameras)))

    def __enter__(self) -> RolloutVideo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._video is None:
            return
        self._video.close()
        if self._is_kept:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def seen(self, observation: Observation) -> None:
        """Show the images of this observation from now on."""
        self._images = observation.images

    def look(self, now_ns: int) -> None:
        if self._video is not None and now_ns >= self._next_ns:
            self._next_ns += PERIOD_NS
            self._add(now_ns, self._progress())

    def finish(self, result: Result) -> None:
        if self._video is None:
            return
        self._is_kept = self._setup.video == "all" or result.outcome is not Outcome.SUCCESS
        text = f"{result.outcome.text}{f': {result.error}' if result.error else ''}"
        for number in range(LAST_PICTURES):
            self._add(self._cell.now_ns + number * PERIOD_NS, text)

    def _add(self, now_ns: int, text: str) -> None:
        assert self._video is not None
        elapsed_ms = (now_ns - self._start_ns) // 1_000_000
        scene_HW3 = self._cell.simulator.render(self._camera, (SIZE, SIZE))
        picture = beside(scene_HW3, self._images)
        told = (
            ""
            if self._job.policy_instruction == self._job.instruction
            else f"  (told: {self._job.policy_instruction})"
        )
        name = f"{self._job.checkpoint}, {self._job.condition}, scene {self._job.seed}"
        lines = (f"{self._job.instruction}{told}", f"{elapsed_ms / 1000:4.1f} s   {text}   {name}")
        self._video.add(picture, lines, elapsed_ms)

    def _progress(self) -> str:
        state = self._cell.task_state
        if state.success:
            return "done"
        return "grasped" if state.partial else "reached" if state.reached else ""
