"""The robot's state as discrete bins (paper, appendix C: text and special-token representation)."""

from __future__ import annotations

import numpy as np

from ki_vla.errors import VlaError

BINS = 256


def discretise(state_S: np.ndarray) -> np.ndarray:
    """Normalised state, [-1, 1] over its usual range -> bins 0..255, int64 of the same shape.

    Values outside [-1, 1] fall into the first or the last bin. openpi writes the bin -1 for a value below -1 (a quirk
    of its digitize call: the prompt then says "-1"); a checkpoint trained so has seen that rarely, and clamping keeps
    the special-token representation possible. The paper numbers the bins from 1; openpi, whose checkpoints are read
    here, from 0.

    Raises:
        VlaError: the state holds NaN or infinity.
    """
    state_S = np.asarray(state_S, dtype=np.float64)
    if not np.isfinite(state_S).all():
        raise VlaError(f'state holds a value that is not finite (index {int(np.argmin(np.isfinite(state_S)))}).')
    edges = np.linspace(-1.0, 1.0, BINS + 1)[:-1]
    return np.asarray(np.clip(np.digitize(state_S, edges) - 1, 0, BINS - 1), dtype=np.int64)


def bin_centres(bins: np.ndarray) -> np.ndarray:
    """Bins 0..255 -> the middle of each bin; off by at most 1/256 for a state within [-1, 1]."""
    return (np.asarray(bins, dtype=np.float64) + 0.5) * (2.0 / BINS) - 1.0


def state_text(state_S: np.ndarray) -> str:
    """The bins as numbers separated by spaces, as they stand in the prompt."""
    return ' '.join(str(value) for value in discretise(state_S).tolist())
