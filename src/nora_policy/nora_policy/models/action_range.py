"""Which DCT coefficients chunks within [-1, 1] can have.

The coefficients of one action dimension, rounded, are a point q of the cube [-1, 1]^T, turned and
scaled by the DCT, plus a box of half a unit for the rounding: a convex body made of segments (a
zonotope), and so is what is left of it when only the first k coefficients are looked at. All its
faces are known in closed form: their normals are orthogonal to k - 1 of the segments. So it can be
told exactly, coefficient by coefficient, which next ones some chunk has.

Legend: T chunk step, F frequency, A action dim, S segments, K faces, X any.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from nora_policy.types import Float64

MAX_HORIZON = 8  # the number of faces grows like C(2T, T)
TOLERANCE = 1e-4  # of a coefficient: float32 transforms of actions at the very limit
PARALLEL = 1e-9


@dataclass(frozen=True, slots=True)
class _Faces:
    """|q_k + slope . (q_0 ... q_k-1)| <= offset: the faces that bound q_k."""

    slope_KF: Float64
    offset_K1: Float64


class ActionRange:
    """Coefficients of the chunks with |a| <= 1 over `horizon` steps, rounded after `scale`."""

    def __init__(self, horizon: int, scale: float) -> None:
        self.horizon, self.scale = horizon, scale
        self._basis_FT = scale * dct(np.eye(horizon), axis=0, norm="ortho")
        self._faces: list[_Faces] = []
        if horizon <= MAX_HORIZON:
            self._faces = [_faces(self._basis_FT[: k + 1]) for k in range(horizon)]

    def interval(
        self, earlier_XF: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Smallest and largest next coefficient, (X,) each, after the `earlier_XF` ones.

        Every integer between them occurs; each row of `earlier_XF` must be within the range.
        """
        if not self._faces:
            raise ValueError(
                f"constrained decoding: expected a horizon of at most {MAX_HORIZON}, "
                f"got {self.horizon}"
            )
        faces = self._faces[earlier_XF.shape[1]]
        center_KX = faces.slope_KF @ earlier_XF.T
        low_X = np.ceil(-(faces.offset_K1 + center_KX).min(axis=0)).astype(np.int64)
        high_X = np.floor((faces.offset_K1 - center_KX).min(axis=0)).astype(np.int64)
        return low_X, np.maximum(low_X, high_X)  # rounding alone can make it look empty

    def contains(self, coefficients_FA: NDArray[np.int64]) -> bool:
        """Whether each dimension is that of some chunk.

        Above `MAX_HORIZON` only: whether what it decodes to is within [-1, 1] and rounding.
        """
        if not self._faces:
            return self._is_near(coefficients_FA)
        for k, row_A in enumerate(coefficients_FA):
            low_A, high_A = self.interval(coefficients_FA[:k].T)
            if np.any(row_A < low_A) or np.any(row_A > high_A):
                return False
        return True

    @property
    def rounding_error(self) -> float:
        """How far decoded actions of the range may leave [-1, 1]."""
        return float(0.5 * np.abs(self._basis_FT).sum(axis=0).max() / self.scale**2)

    def _is_near(self, coefficients_FA: NDArray[np.int64]) -> bool:
        actions_TA = idct(coefficients_FA / self.scale, axis=0, norm="ortho")
        return bool(np.abs(actions_TA).max() <= 1 + self.rounding_error + TOLERANCE / self.scale)


@lru_cache(maxsize=8)
def action_range(horizon: int, scale: float) -> ActionRange:
    """The same range, made once."""
    return ActionRange(horizon, scale)


def _faces(basis_FT: Float64) -> _Faces:
    """Faces of the sum of the segments +-basis (a column each) and +-1/2 along every axis."""
    size = len(basis_FT)
    segments_SF = np.concatenate([basis_FT.T, 0.5 * np.eye(size)])
    normals_KF = _normals(segments_SF) if size > 1 else np.ones((1, 1))
    offsets_K = np.abs(normals_KF @ segments_SF.T).sum(axis=1)
    last_K1 = normals_KF[:, -1:]
    return _Faces(normals_KF[:, :-1] / last_K1, offsets_K[:, None] / last_K1 + TOLERANCE)


def _normals(segments_SF: Float64) -> Float64:
    """Directions orthogonal to size - 1 of the segments, the last entry positive.

    Where those are dependent it is some other direction: it bounds the body too, as any does with
    its own offset, only not as a face.
    """
    size = segments_SF.shape[1]
    groups = np.array(list(combinations(range(len(segments_SF)), size - 1)))
    normals_KF = np.linalg.svd(segments_SF[groups])[2][:, -1, :]
    normals_KF *= np.sign(normals_KF[:, -1:])
    positive_KF = normals_KF[normals_KF[:, -1] > PARALLEL]
    unique_KF: Float64 = np.unique(positive_KF.round(12), axis=0)
    return unique_KF
