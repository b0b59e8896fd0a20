"""How far the tool has to go: target of an auxiliary loss that is no part of NORA-1.5.

Legend: N steps, A action dim.
"""

from __future__ import annotations

import numpy as np

from nora_policy.types import Float64

IS_OPEN = 0.5
SCALE_M = 0.1  # the network tells the displacement in this unit


def to_keyframe(actions_NA: Float64) -> Float64:
    """Commanded displacement (N, 3), m, from every step to the next change of the gripper.

    Worked out from the actions alone: the sum of their translations up to the step whose gripper
    command (open or closed) differs from the one before it, or to the end of the episode.
    """
    num_steps = len(actions_NA)
    is_open_N = actions_NA[:, 6] > IS_OPEN
    changes = np.flatnonzero(is_open_N[1:] != is_open_N[:-1]) + 1
    targets = np.append(changes, num_steps)
    next_N = targets[np.searchsorted(targets, np.arange(num_steps), side="right")]
    before = np.concatenate([np.zeros((1, 3)), actions_NA[:, :3].cumsum(axis=0)])
    displacement: Float64 = before[next_N] - before[:num_steps]
    return displacement
