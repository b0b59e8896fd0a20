"""Render an episode as a video: the images of the policy and the actions that follow."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from nora_core.normalization import Statistics, normalize
from nora_core.types import Float64
from nora_training.data.dataset import Dataset, Entry

SIZE, PANEL, MARGIN = 448, 260, 12
TEXT, DIM, BAR, OUTSIDE = (255, 255, 255), (110, 110, 110), (90, 180, 250), (250, 90, 90)
UInt8 = NDArray[np.uint8]


def write_video(path: Path, dataset: Dataset, entry: Entry, statistics: Statistics) -> None:
    """Write a video of all cameras side by side, one image per step at the speed of the policy.

    Below them the action that follows the image: a bar per dimension within the quantiles of
    normalisation, the gripper's within 0 closed ... 1 open.
    """
    steps = dataset.steps(entry)
    cameras = [dataset.images(entry, camera.name) for camera in dataset.embodiment.cameras]
    width = SIZE * len(cameras)
    with av.open(str(path), "w") as container:
        rate = Fraction(1.0 / dataset.embodiment.action.step_period_s).limit_denominator(1000)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, SIZE + PANEL, "yuv420p"
        for i, action_A in enumerate(steps.actions_NA):
            picture = np.zeros((SIZE + PANEL, width, 3), np.uint8)
            for column, images in enumerate(cameras):
                place = slice(column * SIZE, (column + 1) * SIZE)
                picture[:SIZE, place] = cv2.resize(
                    images[i], (SIZE, SIZE), interpolation=cv2.INTER_NEAREST
                )
            time_s = (steps.stamps_N[i] - steps.stamps_N[0]) * 1e-9
            _write(picture, f"{entry.instruction}  ({entry.outcome})", SIZE + 22)
            note = "" if steps.is_observed_N[i] else "   NO IMAGE"
            _write(picture, f"step {i + 1}/{entry.num_steps}   {time_s:.1f} s{note}", SIZE + 44)
            _bars(picture, dataset.embodiment.action.names, action_A, statistics)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def _bars(
    picture: UInt8, names: tuple[str, ...], action_A: Float64, statistics: Statistics
) -> None:
    scaled_A = normalize(action_A, statistics)
    is_outside = (action_A < statistics.q01_A) | (action_A > statistics.q99_A)
    left, right = 110, picture.shape[1] - 110
    for i, name in enumerate(names):
        y = SIZE + 74 + 27 * i
        is_scaled = bool(statistics.mask_A[i])
        zero = normalize(np.zeros_like(action_A), statistics)[i] if is_scaled else -1.0
        value = scaled_A[i] if is_scaled else 2.0 * action_A[i] - 1.0
        x, x0 = (round(left + (right - left) * (v + 1) / 2) for v in (value, zero))
        color = OUTSIDE if is_scaled and is_outside[i] else BAR
        cv2.rectangle(picture, (left, y - 14), (right, y), DIM, 1)
        cv2.rectangle(picture, (min(x, x0), y - 13), (max(x, x0), y - 1), color, cv2.FILLED)
        cv2.line(picture, (x0, y - 17), (x0, y + 3), TEXT, 1)
        _write(picture, name, y)
        _write(picture, f"{action_A[i]:+.4f}", y, right + MARGIN)


def _write(picture: UInt8, text: str, y: int, x: int = MARGIN) -> None:
    cv2.putText(picture, text, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, TEXT, 1, cv2.LINE_AA)
