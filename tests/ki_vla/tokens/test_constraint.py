"""Decoding from a real, untrained model: under the constraint even noise ends in a chunk."""

import numpy as np
import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy.generation import generate
from ki_vla.tokens.actions import ActionTokens
from ki_vla.tokens.constraint import OnlyActions
from ki_vla.tokens.fast import fit
from ki_vla.tokens.tokenizer import train_tokenizer


@pytest.fixture(scope='module')
def tokens():
    rng = np.random.default_rng(0)
    chunks = np.cumsum(rng.normal(0.0, 0.1, (40, 8, 4)), axis=1)
    text = train_tokenizer(['Task: go, State: 1;\nAction: '], size=2048)
    return ActionTokens(fit(chunks, size=256), text.vocabulary)


def prefix_of(model, batch):
    config = model.config
    pixels = config.vision.image_size
    return model.prefill(
        torch.zeros(batch, 1, 3, pixels, pixels),
        torch.ones(batch, 1, dtype=torch.bool),
        torch.arange(batch * 5).reshape(batch, 5) + 3,
        torch.ones(batch, 5, dtype=torch.bool),
        torch.zeros(batch, config.state_dim),
        hidden=True,
    )


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_an_untrained_model_decodes_valid_chunks_in_every_row(tokens, temperature):
    model = initialise(KiVla(preset('tiny')), torch.Generator().manual_seed(0))
    vocabulary = tokens.vocabulary
    found = generate(
        model,
        prefix_of(model, 3),
        60,
        [vocabulary.eos],
        OnlyActions(tokens),
        temperature,
        torch.Generator().manual_seed(1),
    )
    assert found.finished.all()
    for ids, mask in zip(found.ids, found.mask, strict=True):
        chunk = tokens.decode(ids[mask].tolist())
        assert chunk.shape == (8, 4)
        assert np.isfinite(chunk).all()


def test_it_serves_one_decoding_and_says_so(tokens):
    only = OnlyActions(tokens)
    only(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(VlaError, match='expected 1 ids for 2 rows'):
        only(torch.zeros(2, 5, dtype=torch.int64))
