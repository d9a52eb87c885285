"""Tokens one at a time: the cache, the constraint, the stop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.kivla import KiVla, Prefix
from ki_vla.policy.generation import action_tokens_only, generate

BAR, EOS = 3, 1


@pytest.fixture
def ready(make_model: Callable, make_batch: Callable) -> tuple[KiVla, Prefix]:
    model = make_model()
    b = make_batch(model)
    return model, model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS, hidden=True)


def test_greedy_decoding_is_the_argmax_of_the_training_logits(ready: tuple) -> None:
    """Token by token through the cache, against all tokens at once as in training."""
    model, prefix = ready
    found = generate(model, prefix, 12, stop_ids=[])
    assert found.ids.shape == (4, 12)
    assert not found.finished.any()
    logits = model.logits(model.token_hidden(prefix, found.ids, found.mask))
    assert torch.equal(logits.argmax(dim=-1), found.ids)


def test_rows_stop_on_their_own(ready: tuple) -> None:
    model, prefix = ready
    free = generate(model, prefix, 12, stop_ids=[])
    stop = int(free.ids[0, 3])
    first = int((free.ids[0] == stop).nonzero()[0])
    found = generate(model, prefix, 12, stop_ids=[stop])
    assert bool(found.finished[0])
    assert int(found.mask[0].sum()) == first + 1, 'the stop token is the last valid one'
    assert torch.equal(found.ids[0, : first + 1], free.ids[0, : first + 1])


def test_constrained_decoding_gives_actions_then_bar_then_eos(ready: tuple) -> None:
    model, prefix = ready
    allowed = action_tokens_only(1800, 1900, BAR, EOS, model.config.vocab_size)
    found = generate(model, prefix, 30, [EOS], allowed, temperature=2.0, generator=torch.Generator().manual_seed(0))
    for ids, mask, finished in zip(found.ids, found.mask, found.finished, strict=True):
        tokens = ids[mask].tolist()
        body = tokens[:-2] if finished else tokens
        assert body
        assert all(1800 <= t <= 1900 for t in body)
        if finished:
            assert tokens[-2:] == [BAR, EOS]


def test_after_the_bar_only_eos_is_allowed() -> None:
    allowed = action_tokens_only(10, 12, BAR, EOS, 16)
    assert allowed(torch.tensor([[10, BAR]])).nonzero()[:, 1].tolist() == [EOS]
    assert allowed(torch.tensor([[10]])).nonzero()[:, 1].tolist() == [BAR, 10, 11, 12]
    assert allowed(torch.zeros(1, 0, dtype=torch.int64)).nonzero()[:, 1].tolist() == [10, 11, 12]


def test_sampling_follows_the_seed(ready: tuple) -> None:
    model, prefix = ready
    a, b, c = (
        generate(model, prefix, 8, [], temperature=5.0, generator=torch.Generator().manual_seed(s)).ids
        for s in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_what_cannot_be_decoded_is_refused(ready: tuple) -> None:
    from dataclasses import replace

    model, prefix = ready
    with pytest.raises(VlaError, match='hidden=True'):
        generate(model, replace(prefix, hidden_BD=None), 4, [])
    with pytest.raises(VlaError, match='no token'):
        generate(model, prefix, 4, [], allowed=torch.zeros(model.config.vocab_size, dtype=torch.bool))
