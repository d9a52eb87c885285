"""Who sees whom, and where everybody stands."""

from __future__ import annotations

import torch

from ki_vla.model import masks


def test_prefix_mask_covers_views_prompt_and_state() -> None:
    images, prompt = torch.tensor([[True, False]]), torch.tensor([[True, True, False]])
    assert masks.prefix_mask(images, 2, prompt, False)[0].int().tolist() == [1, 1, 0, 0, 1, 1, 0]
    assert masks.prefix_mask(images, 2, prompt, True)[0].int().tolist() == [1, 1, 0, 0, 1, 1, 0, 1]


def test_positions_count_valid_tokens_only() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 1, 1]]).bool()
    assert masks.positions(mask).tolist() == [[0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 2, 3]]
    assert masks.lengths(mask).tolist() == [3, 4]
    assert masks.last_valid(mask).tolist() == [4, 5]
    assert masks.positions_after(masks.lengths(mask), 2).tolist() == [[3, 4], [4, 5]]


def test_who_sees_whom() -> None:
    assert masks.causal(3)[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert masks.everyone(2)[0].int().tolist() == [[1, 1], [1, 1]]
    assert masks.state_then_actions(3)[0].int().tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
