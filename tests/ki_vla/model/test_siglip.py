"""The vision tower. Its numbers are compared with transformers in tests/parity."""

from __future__ import annotations

from collections.abc import Callable

import torch


def test_views_do_not_see_each_other(make_model: Callable) -> None:
    model = make_model()
    images = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    together = model.encode(images).unflatten(1, (3, -1))
    alone = model.encode(images[1:, 2:])
    assert torch.allclose(together[1, 2], alone[0], atol=1e-5)


def test_tokens_of_a_view(make_model: Callable) -> None:
    model = make_model()
    assert model.encode(torch.zeros(2, 3, 3, 32, 32)).shape == (2, 3 * 4, 64)
    assert model.encode(torch.zeros(2, 1, 3, 32, 32)).shape == (2, 4, 64)


def test_recomputing_blocks_changes_no_gradient(make_model: Callable) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model()
        model.checkpointing = checkpointing
        model.encode(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 1, 3, 32, 32)).square().sum().backward()
        gradients.append(model.vision.patch.weight.grad)
    assert torch.allclose(*gradients, rtol=1e-5)
