"""Shared pieces: smooth chunks, a small tokenizer."""

import numpy as np
import pytest

from ki_vla.tokens.tokenizer import TextTokenizer, train_tokenizer

SENTENCES = [f'Task: pick up the {colour} {thing}, State: 12 200 7;\nAction: ' for colour in ('red', 'green', 'blue')
             for thing in ('cube', 'bowl', 'block')]  # fmt: skip


@pytest.fixture(scope='session')
def small() -> TextTokenizer:
    return train_tokenizer(SENTENCES, size=1024, text_size=320, loc_bins=64, action_size=300)


@pytest.fixture(scope='session')
def chunks() -> np.ndarray:
    """Random walks within about [-1.5, 1.5]: [60, 20, 6]."""
    rng = np.random.default_rng(3)
    return np.clip(np.cumsum(rng.normal(0.0, 0.1, (60, 20, 6)), axis=1), -1.5, 1.5)
