"""Rotates, crops and resizes camera images for the network (numpy layer).

Legend: H W image size, S source rows, O output rows, X values of a row, I input samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from nora_core.embodiment import Camera

UInt8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]

LANCZOS_RADIUS = 3.0
BAND = 28  # output rows that share one dense product over the few input rows they need


def orient(rgb_HW3: UInt8, camera: Camera) -> UInt8:
    """Rotate the image clockwise by the camera's `rotation_deg`, then crop it to `crop`."""
    turned_HW3 = np.rot90(rgb_HW3, -(camera.rotation_deg // 90))
    if camera.crop is None:
        return turned_HW3
    top, left, height, width = camera.crop
    if top + height > turned_HW3.shape[0] or left + width > turned_HW3.shape[1]:
        raise ValueError(
            f"camera {camera.name}: expected an image that holds crop {list(camera.crop)}, "
            f"got height, width {list(turned_HW3.shape[:2])}"
        )
    return turned_HW3[top : top + height, left : left + width]


def resize(rgb_HW3: UInt8, height: int, width: int) -> UInt8:
    """Resize `rgb_HW3` to (height, width, 3) exactly as in pre-training.

    Equals TensorFlow's `tf.image.resize(..., method="lanczos3", antialias=True)`, rounded half to
    even and clipped to uint8 (dlimp's `resize_image`). An image of that size is returned as it is.
    """
    if rgb_HW3.shape[:2] == (height, width):
        return rgb_HW3
    x_W3H = _resample(rgb_HW3, height)
    x_3HW = _resample(x_W3H, width)
    np.rint(x_3HW, out=x_3HW)
    np.clip(x_3HW, 0, 255, out=x_3HW)
    return np.ascontiguousarray(np.moveaxis(x_3HW.astype(np.uint8), 0, -1))


def _resample(x: UInt8 | Float32, out_size: int) -> Float32:
    """Resample the first axis and make it the last: the next product then needs no transpose."""
    flat_SX = np.ascontiguousarray(x).reshape(len(x), -1)
    y_XO = np.empty((flat_SX.shape[1], out_size), np.float32)
    for band in _bands(len(x), out_size):
        source_SX = flat_SX[band.source].astype(np.float32, copy=False)
        y_XO[:, band.target] = source_SX.T @ band.weights_SO
    return y_XO.reshape(*x.shape[1:], out_size)


@dataclass(frozen=True, slots=True)
class _Band:
    source: slice
    target: slice
    weights_SO: Float32


@lru_cache(maxsize=32)
def _bands(in_size: int, out_size: int) -> tuple[_Band, ...]:
    weights_OI = _lanczos_weights(in_size, out_size)
    bands = []
    for start in range(0, out_size, BAND):
        target = slice(start, min(start + BAND, out_size))
        used = np.flatnonzero(weights_OI[target].any(axis=0))
        source = slice(int(used[0]), int(used[-1]) + 1)
        weights_SO = np.ascontiguousarray(weights_OI[target, source].T)
        bands.append(_Band(source, target, weights_SO))
    return tuple(bands)


def _lanczos_weights(in_size: int, out_size: int) -> Float32:
    """(out_size, in_size) weights of TensorFlow's `ScaleAndTranslate`, each row with sum 1.

    The kernel widens when shrinking (antialias); samples outside of the image carry no weight.
    """
    scale = np.float32(in_size / out_size)
    width = max(scale, np.float32(1.0))
    centers_O = (np.arange(out_size, dtype=np.float32) + np.float32(0.5)) * scale
    samples_I = np.arange(in_size, dtype=np.float32) + np.float32(0.5)
    x_OI = np.abs((samples_I[None, :] - centers_O[:, None]) / width)
    phase_OI = np.float32(np.pi) * np.maximum(x_OI, np.float32(1e-3))
    weights_OI = LANCZOS_RADIUS * np.sin(phase_OI) * np.sin(phase_OI / LANCZOS_RADIUS)
    weights_OI = np.where(x_OI <= 1e-3, np.float32(1.0), weights_OI / phase_OI**2)
    weights_OI[x_OI > LANCZOS_RADIUS] = 0.0
    normalised_OI: Float32 = (weights_OI / weights_OI.sum(axis=1, keepdims=True)).astype(
        np.float32
    )
    return normalised_OI
