"""Attention masks and positions.

The sequence of one example is  [images | prompt | state token?]  [targets]  and, beside it,  [noisy actions].
    prefix   sees the prefix, both ways                                      (images, instruction, text state)
    targets  see the prefix and, causally, themselves                        (FAST or text tokens)
    actions  see the prefix and themselves, both ways; never the targets     (queries of the action expert)
Padding is never attended to. Positions count valid tokens only. Targets and actions both continue after the prefix:
actions have the same positions in training, where targets exist, and at inference, where they do not.

Shape legend: B batch, V views, N tokens a view, L prompt, S prefix tokens, Q queries, T target tokens, H horizon.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prefix_mask(image_mask_BV: Tensor, tokens_per_view: int, prompt_mask_BL: Tensor, state_token: bool) -> Tensor:
    """Validity of every prefix token, bool [B, S] with S = V*N + L (+ 1 with a state token)."""
    images_BVN = image_mask_BV[:, :, None].expand(-1, -1, tokens_per_view)
    parts = [images_BVN.flatten(1), prompt_mask_BL]
    if state_token:
        parts.append(torch.ones_like(prompt_mask_BL[:, :1]))
    return torch.cat(parts, dim=1)


def positions(mask_BS: Tensor) -> Tensor:
    """Position of every token, int64 [B, S]: how many valid tokens stand before it; padding repeats a neighbour's."""
    # A cumulative sum of booleans is not understood by every exporter; of int64 it is.
    return (torch.cumsum(mask_BS.to(torch.int64), dim=1) - 1).clamp(min=0)


def lengths(mask_BS: Tensor) -> Tensor:
    """Number of valid tokens, int64 [B]."""
    return mask_BS.to(torch.int64).sum(dim=1)


def last_valid(mask_BS: Tensor) -> Tensor:
    """Index of the last valid token, int64 [B]."""
    index_S = torch.arange(mask_BS.shape[1], device=mask_BS.device)
    return (index_S * mask_BS.to(torch.int64)).amax(dim=1)


def positions_after(length_B: Tensor, count: int) -> Tensor:
    """Positions of `count` tokens that follow `length_B` others, int64 [B, count]."""
    return length_B[:, None] + torch.arange(count, device=length_B.device)[None]


def causal(count: int, device: torch.device | None = None) -> Tensor:
    """Each sees itself and what stands before it, bool [1, count, count]."""
    index = torch.arange(count, device=device)
    return (index[None, :] <= index[:, None])[None]


def everyone(count: int, device: torch.device | None = None) -> Tensor:
    """All see all, bool [1, count, count]."""
    return torch.ones(1, count, count, dtype=torch.bool, device=device)


def state_then_actions(count: int, device: torch.device | None = None) -> Tensor:
    """pi0's suffix, bool [1, count, count]: the state token sees itself, the actions see the state and each other."""
    index = torch.arange(count, device=device)
    return ((index[:, None] > 0) | (index[None, :] == 0))[None]
