"""Which DCT coefficients chunks within [-1, 1] can have.

The coefficients of one action dimension, rounded, are a point q of the cube [-1, 1]^T, turned and
scaled by the DCT, plus a box of half a unit for the rounding: a convex body made of segments (a
zonotope), and so is what is left of it when only the first k coefficients are looked at. All its
faces are known in closed form: their normals are orthogonal to k - 1 of the segments. So it can be
told exactly, coefficient by coefficient, which next ones some chunk has.

Legend: T chunk step, F frequency, A action dim, S segments, K faces, X any.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct

from nora_core.types import Float64

MAX_HORIZON = 8  # the number of faces grows like C(2T, T)
TOLERANCE = 1e-4  # of a coefficient: float32 transforms of actions at the very limit
PARALLEL = 1e-9


class ActionRange:
    """Coefficients of the chunks with |a| <= 1 over `horizon` steps, rounded after `scale`."""

    def __init__(self, horizon: int, scale: float) -> None:
        self.horizon, self.scale = horizon, scale
        self._basis_FT = scale * dct(np.eye(horizon), axis=0, norm="ortho")
        # |normal . q| <= offset: first the faces that bound q_0, then those that bound q_1, ...
        self._faces: list[tuple[Float64, Float64]] = []
        if horizon <= MAX_HORIZON:
            self._faces = [_faces(self._basis_FT[: k + 1]) for k in range(horizon)]
            padded = [np.pad(x, ((0, 0), (0, horizon - x.shape[1]))) for x, _ in self._faces]
            self._normal_KF = np.concatenate(padded)
            self._offset_K1 = np.concatenate([offset_K1 for _, offset_K1 in self._faces])
            self._bounded_K1 = np.repeat(range(horizon), [len(x) for x in padded])[:, None]

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
        normal_KF, offset_K1 = self._faces[earlier_XF.shape[1]]
        center_KX = normal_KF[:, :-1] @ earlier_XF.T
        low_X = np.ceil((-offset_K1 - center_KX).max(axis=0)).astype(np.int64)
        high_X = np.floor((offset_K1 - center_KX).min(axis=0)).astype(np.int64)
        return low_X, np.maximum(low_X, high_X)  # rounding alone can make it look empty

    def overlaps(
        self, low_XF: NDArray[np.int64], high_XF: NDArray[np.int64], size_X: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Whether some chunk begins with the first `size` coefficients of a row (X,).

        These are low = high, except that the last one may be anything from low to high; what is
        behind it is not looked at. `size` may exceed the horizon: so do no coefficients count.
        """
        width = min(low_XF.shape[1], self.horizon)
        count = np.searchsorted(self._bounded_K1[:, 0], width)
        normal_KF, offset_K1 = self._normal_KF[:count, :width], self._offset_K1[:count]
        low_KX: Float64 = normal_KF @ low_XF[:, :width].T
        high_KX: Float64 = normal_KF @ high_XF[:, :width].T
        is_ok_KX = (low_KX <= offset_K1) & (high_KX >= -offset_K1)
        is_ok_KX |= self._bounded_K1[:count] >= size_X  # faces of coefficients that do not count
        is_ok_X: NDArray[np.bool_] = np.logical_and.reduce(is_ok_KX, axis=0)
        return is_ok_X

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


def _faces(basis_FT: Float64) -> tuple[Float64, Float64]:
    """Normals (K, F), their last entry 1, and offsets (K, 1) of the faces that bound that entry.

    The body is the sum of the segments +-basis (a column each) and +-1/2 along every axis.
    """
    size = len(basis_FT)
    segments_SF = np.concatenate([basis_FT.T, 0.5 * np.eye(size)])
    normal_KF = _normals(segments_SF) if size > 1 else np.ones((1, 1))
    normal_KF /= normal_KF[:, -1:]
    return normal_KF, np.abs(normal_KF @ segments_SF.T).sum(axis=1, keepdims=True) + TOLERANCE


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
