"""Tool displacement to the next keyframe, the target of an auxiliary loss that NORA-1.5 lacks.

Legend: N steps, A action dim.
"""

from __future__ import annotations

import numpy as np

from nora_core.types import Float64
from nora_training.data.dataset import Steps

IS_OPEN = 0.5
SCALE_M = 0.1  # the network predicts the displacement in this unit


def to_keyframe(steps: Steps) -> Float64:
    """Return the displacement (N, 3), m, from every step to the next keyframe.

    A keyframe is a step whose gripper command (open or closed) differs from the one before it, or
    the end of the episode. The displacement is measured; if an episode lacks measurements, it is
    the sum of the commands.
    """
    actions_NA, num_steps = steps.actions_NA, len(steps.actions_NA)
    is_open_N = actions_NA[:, 6] > IS_OPEN
    changes = np.flatnonzero(is_open_N[1:] != is_open_N[:-1]) + 1
    targets = np.append(changes, num_steps)
    next_N = targets[np.searchsorted(targets, np.arange(num_steps), side="right")]
    path = np.vstack([steps.positions_N3, steps.positions_N3[-1:] + steps.measured_N6[-1:, :3]])
    if not np.isfinite(path).all():
        path = np.vstack([np.zeros((1, 3)), actions_NA[:, :3].cumsum(axis=0)])
    displacement: Float64 = path[next_N] - path[:num_steps]
    return displacement
