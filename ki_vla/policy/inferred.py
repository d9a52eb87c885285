"""The result of one inference. Without torch, because a policy without a model returns it, too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Inferred:
    """One chunk and how long each part of it took."""

    data_HN: NDArray[np.float64]  # absolute SI values; step 0 is at the observation's state
    preprocess_ns: int = 0  # wall time until the model's inputs are there
    inference_ns: int = 0  # wall time of the engine, and of saying the next subtask
    postprocess_ns: int = 0  # wall time back to absolute SI values
    subtask: str = ''  # what the policy said it does next, where it has two levels
    network_ns: int = 0  # wall time on the way to a server and back
