"""Videos of a LeRobot data set: one frame per step, many episodes per file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from nora_training.data.dataset import UInt8


class VideoWriter:
    """An H.264 file of square images, `size` px wide; RGB and lossless with `crf` 0."""

    def __init__(self, path: Path, size: int, fps: int, crf: int) -> None:
        codec, layout = ("libx264rgb", "rgb24") if crf == 0 else ("libx264", "yuv420p")
        self._container = av.open(str(path), "w")
        # As LeRobot writes them: every other frame a key frame, so that one is always near.
        options = {"crf": str(crf), "g": "2", "bf": "0"}
        stream = self._container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.width = self._stream.height = size
        self._stream.pix_fmt = layout

    def write(self, rgb_HW3: UInt8) -> None:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HW3), "rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def video_info(size: int, fps: int, crf: int) -> dict[str, Any]:
    """What `info.json` says about a file of `VideoWriter`."""
    return {
        "video.height": size,
        "video.width": size,
        "video.codec": "h264",
        "video.pix_fmt": "gbrp" if crf == 0 else "yuv420p",
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }


class VideoReader:
    """Frames of one file by their number at `fps`; fast when they are asked for in order."""

    def __init__(self, path: Path, fps: int) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: the video is missing")
        self._path, self._fps = path, fps
        self._frames = self._decode()
        self._next = 0

    def read(self, first: int, num: int) -> Iterator[UInt8]:
        """(height, width, 3) RGB of frames `first` ... `first + num - 1`.

        Raises:
            ValueError: one of them is not in the file, or it cannot be decoded.
        """
        if first < self._next:
            self._frames = self._decode()
        for wanted in range(first, first + num):
            number, frame = next(self._frames, (-1, None))
            while frame is not None and number < wanted:
                number, frame = next(self._frames, (-1, None))
            if frame is None or number != wanted:
                raise ValueError(f"{self._path}: frame number {wanted} is missing")
            self._next = wanted + 1
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)

    def _decode(self) -> Iterator[tuple[int, av.VideoFrame]]:
        try:
            with av.open(str(self._path)) as container:
                for frame in container.decode(video=0):
                    yield _number(frame, self._fps), frame
        except av.error.FFmpegError as error:
            raise ValueError(f"{self._path}: expected a readable video, got: {error}") from error


def _number(frame: av.VideoFrame, fps: int) -> int:
    """Which frame this is by its time, wherever the file begins."""
    if frame.pts is None or frame.time_base is None:
        raise ValueError("video: expected frames with a time, got one without")
    return round(Fraction(frame.pts) * frame.time_base * fps)
