"""Videos with captions, written frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

SIZE = 512
CAPTION_HEIGHT = 64
WHITE = (255, 255, 255)
UInt8 = NDArray[np.uint8]


class Video:
    """An H.264 file of pictures `SIZE` high and `width` wide, over a caption of two lines."""

    def __init__(self, path: Path, width: int = SIZE) -> None:
        self._container = av.open(str(path), "w")
        self._stream = self._container.add_stream("libx264", rate=30, options={"crf": "23"})
        self._stream.width, self._stream.height = width, SIZE + CAPTION_HEIGHT
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 1000)

    def add(self, rgb_HW3: UInt8, caption: tuple[str, str], time_ms: int) -> None:
        """Show a picture, resized, from `time_ms` on; times must increase."""
        width = self._stream.width
        picture = np.zeros((SIZE + CAPTION_HEIGHT, width, 3), np.uint8)
        picture[:SIZE] = cv2.resize(rgb_HW3, (width, SIZE), interpolation=cv2.INTER_CUBIC)
        for line, text in enumerate(caption):
            place = (12, SIZE + 26 + 26 * line)
            cv2.putText(
                picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, WHITE, 1, cv2.LINE_AA
            )
        frame = av.VideoFrame.from_ndarray(picture, "rgb24")
        frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()


def beside(main_HW3: UInt8, others: Sequence[UInt8]) -> UInt8:
    """The main view with a column of the others on its right, (`SIZE`, W, 3)."""
    main = _resized(main_HW3, SIZE)
    if not others:
        return main
    size = _side(len(others))
    column = np.zeros((SIZE, size, 3), np.uint8)
    for row, image_HW3 in enumerate(others):
        column[row * size : (row + 1) * size] = _resized(image_HW3, size)
    return np.hstack([main, column])


def beside_width(num_others: int) -> int:
    """Width of the picture that `beside` makes, px."""
    return SIZE + (_side(num_others) if num_others else 0)


def _side(num_others: int) -> int:
    """Side of one of the views in the column, px; even, as the codec wants it."""
    return SIZE // num_others // 2 * 2


def _resized(rgb_HW3: UInt8, size: int) -> UInt8:
    return np.asarray(cv2.resize(rgb_HW3, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)
