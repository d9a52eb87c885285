"""The robot's state as discrete bins (paper, appendix C: text and special-token representation)."""

from __future__ import annotations

import numpy as np

from ki_vla.errors import VlaError

BINS = 256


def discretise(state_S: np.ndarray, lowest: int = 0) -> np.ndarray:
    """Normalised state, [-1, 1] over its usual range -> bins 0..255, int64 of the same shape.

    Values outside [-1, 1] fall into the first or the last bin. The paper numbers the bins from 1; openpi, whose
    checkpoints are read here, from 0.

    Args:
        state_S: the state.
        lowest: the bin of a value below -1. openpi and lerobot have the bin -1 there, and the prompt says "-1"; a
            policy that was trained so is shown the same.

    Raises:
        VlaError: the state holds NaN or infinity.
    """
    state_S = np.asarray(state_S, dtype=np.float64)
    if not np.isfinite(state_S).all():
        raise VlaError(f'state holds a value that is not finite (index {int(np.argmin(np.isfinite(state_S)))}).')
    edges = np.linspace(-1.0, 1.0, BINS + 1)[:-1]
    return np.asarray(np.clip(np.digitize(state_S, edges) - 1, lowest, BINS - 1), dtype=np.int64)


def bin_centres(bins: np.ndarray) -> np.ndarray:
    """Bins 0..255 -> the middle of each bin; off by at most 1/256 for a state within [-1, 1]."""
    return (np.asarray(bins, dtype=np.float64) + 0.5) * (2.0 / BINS) - 1.0


def state_text(state_S: np.ndarray, lowest: int = 0) -> str:
    """The bins as numbers separated by spaces, as they stand in the prompt; see `discretise`."""
    return ' '.join(str(value) for value in discretise(state_S, lowest).tolist())
