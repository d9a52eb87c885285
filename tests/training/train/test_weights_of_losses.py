"""Text and action tokens share one mean, or have a weight each."""

from __future__ import annotations

import pytest
import torch

from ki_vla.objective.losses import Losses
from training.samples.collator import Counts
from training.train.config import Stage
from training.train.trainer import weighted

TEXT, FAST, FLOW, DENSE = 2.0, 4.0, 0.5, 3.0
N_TEXT, N_FAST = 10.0, 30.0


def found() -> Losses:
    one = torch.tensor
    tokens = (TEXT * N_TEXT + FAST * N_FAST) / (N_TEXT + N_FAST)
    return Losses(*map(one, (0.0, tokens, TEXT, FAST, FLOW, N_TEXT, N_FAST, 5.0, DENSE, 2.0)))


HERE = Counts(N_TEXT, N_FAST, 5.0, 2.0)


def test_left_out_every_token_counts_the_same() -> None:
    assert float(weighted(found(), Stage(), 1.0, HERE, HERE)) == pytest.approx(3.5 + FLOW + DENSE)


def test_given_each_kind_of_token_is_a_mean_of_its_own() -> None:
    stage = Stage(text_weight=0.5, dense=0.0)
    assert float(weighted(found(), stage, 2.0, HERE, HERE)) == pytest.approx(0.5 * TEXT + FAST + 2 * FLOW)


def test_a_micro_batch_has_the_share_of_its_tokens() -> None:
    step = Counts(2 * N_TEXT, 3 * N_FAST, 10.0, 4.0)
    stage = Stage(text_weight=1.0, fast_weight=3.0)
    expected = TEXT / 2 + 3 * FAST / 3 + FLOW / 2 + DENSE / 2
    assert float(weighted(found(), stage, 1.0, HERE, step)) == pytest.approx(expected)
