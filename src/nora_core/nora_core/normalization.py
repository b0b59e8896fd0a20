"""Scales physical actions to the network's [-1, 1] and back, by 1 % and 99 % quantiles (numpy).

NORA, section 3 (as in OpenVLA): masked dimensions are scaled, the others (the gripper) are kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nora_core.types import Float64


@dataclass(frozen=True, slots=True)
class Statistics:
    """Quantiles of a data set's actions, each (A,); `mask_A` says which dimensions are scaled."""

    q01_A: Float64
    q99_A: Float64
    mask_A: NDArray[np.bool_]

    def __post_init__(self) -> None:
        shape = self.q01_A.shape
        if len(shape) != 1:
            raise ValueError(f"q01: expected a list of numbers, got shape {shape}")
        for name, value in (("q99", self.q99_A), ("mask", self.mask_A)):
            if value.shape != shape:
                raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
        if self.mask_A.dtype != np.bool_:
            raise ValueError(f"mask: expected booleans, got {self.mask_A.tolist()}")
        if not np.isfinite([self.q01_A, self.q99_A]).all():
            raise ValueError("q01, q99: expected finite numbers, got NaN or infinity")
        if (self.q99_A < self.q01_A).any():
            raise ValueError(
                f"q99: expected at least q01 {self.q01_A.tolist()}, got {self.q99_A.tolist()}"
            )

    @classmethod
    def load(cls, path: Path, key: str) -> Statistics:
        """Read `{key: {"action": {"q01": [...], "q99": [...], "mask": [...]}}}` from JSON."""
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from error
        if not isinstance(data, dict) or key not in data:
            available = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"{path}: expected statistics {key!r}, available: {available}")
        try:
            return cls.from_json(data[key]["action"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: {key}: expected action.q01, q99, mask: {error!r}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {key}.action.{error}") from error

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Statistics:
        q01, q99 = (np.asarray(data[name], dtype=np.float64) for name in ("q01", "q99"))
        return cls(q01, q99, np.asarray(data["mask"]))

    def to_json(self) -> dict[str, Any]:
        q01, q99, mask = self.q01_A.tolist(), self.q99_A.tolist(), self.mask_A.tolist()
        return {"q01": q01, "q99": q99, "mask": mask}


def normalize(actions: ArrayLike, statistics: Statistics) -> Float64:
    """Scale physical (..., A) to [-1, 1] and clip where masked; zero-width dimensions become 0."""
    x = np.asarray(actions, dtype=np.float64)
    width = statistics.q99_A - statistics.q01_A
    has_width = width > 0
    scaled = 2.0 * (x - statistics.q01_A) / np.where(has_width, width, 1.0) - 1.0
    scaled = np.where(has_width, np.clip(scaled, -1.0, 1.0), 0.0)
    return np.where(statistics.mask_A, scaled, x)


def denormalize(actions: ArrayLike, statistics: Statistics) -> Float64:
    """Scale [-1, 1] to physical (..., A) where masked; inverts `normalize` within the quantiles.

    Masked values are clipped to the quantiles: never further than what was seen in training.
    """
    x = np.asarray(actions, dtype=np.float64)
    q01, q99 = statistics.q01_A, statistics.q99_A
    scaled = q01 + 0.5 * (x + 1.0) * (q99 - q01)
    return np.where(statistics.mask_A, np.clip(scaled, q01, q99), x)


def denormalize_all(actions: ArrayLike, statistics: Statistics) -> Float64:
    """Denormalize as NORA's reference code does, without mask and limits; for comparisons only.

    A gripper of 0 ... 1 comes out as 0.5 ... 1, so that rounding decides what "closed" becomes.
    """
    x = np.asarray(actions, dtype=np.float64)
    return statistics.q01_A + 0.5 * (x + 1.0) * (statistics.q99_A - statistics.q01_A)
