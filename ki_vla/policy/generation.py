"""Autoregressive decoding with the backbone: answers in text, and action tokens (the pi0-FAST baseline).

Shape legend: B batch, T tokens so far, C vocabulary, S context tokens, G key/value heads, K head dim, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ki_vla.errors import VlaError
from ki_vla.model import masks
from ki_vla.model.gemma import Context
from ki_vla.model.kivla import KiVla, Prefix

Allowed = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Generated:
    """What was decoded: ids [B, T] with the stop token, their validity, and whether each row has come to its stop."""

    ids: Tensor
    mask: Tensor
    finished: Tensor


@torch.no_grad()
def generate(
    model: KiVla,
    prefix: Prefix,
    max_tokens: int,
    stop_ids: Sequence[int],
    allowed: Tensor | Allowed | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Generated:
    """Continue the prompt.

    Args:
        model: the model.
        prefix: from `prefill(..., hidden=True)`.
        max_tokens: stop here at the latest.
        stop_ids: ids that end a row, usually EOS.
        allowed: bool [C] of ids that may be chosen, or a function of the ids so far [B, T] to bool [B, C].
        temperature: 0 takes the most likely token; above, tokens are drawn from the softened distribution.
        generator: for reproducible draws.

    Raises:
        VlaError: the prefix has no last output, or no token is allowed.
    """
    if prefix.hidden_BD is None:
        raise VlaError('generate: the prefix has no output to continue from; call prefill(..., hidden=True).')
    hidden_BD, B = prefix.hidden_BD, len(prefix.mask_BS)
    stop = torch.tensor(list(stop_ids), device=hidden_BD.device)
    ids_BT = torch.zeros(B, 0, dtype=torch.int64, device=hidden_BD.device)
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    finished_B = mask_BT.new_zeros(B)
    context = prefix.context
    for index in range(max_tokens):
        logits_BC = _restrict(model.logits(hidden_BD), allowed, ids_BT)
        next_B = _choose(logits_BC, temperature, generator)
        ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
        mask_BT = torch.cat([mask_BT, ~finished_B[:, None]], dim=1)
        finished_B = finished_B | torch.isin(next_B, stop)
        if bool(finished_B.all()) or index == max_tokens - 1:
            break
        hidden_BD, context = _read(model, prefix, context, next_B, index)
    return Generated(ids_BT, mask_BT, finished_B)


def action_tokens_only(low: int, high: int, bar: int, eos: int, vocab_size: int) -> Allowed:
    """Constrained decoding of FAST: action ids low..high, closed by '|', then EOS and nothing else.

    The first token cannot be the bar: an empty action is no action.
    """

    def allowed(ids_BT: Tensor) -> Tensor:
        index_C = torch.arange(vocab_size, device=ids_BT.device)
        action_C = (index_C >= low) & (index_C <= high)
        closed_B1 = (ids_BT == bar).any(dim=1, keepdim=True)
        open_C = action_C if ids_BT.shape[1] == 0 else action_C | (index_C == bar)
        return torch.where(closed_B1, index_C == eos, open_C)

    return allowed


def _restrict(logits_BC: Tensor, allowed: Tensor | Allowed | None, ids_BT: Tensor) -> Tensor:
    if allowed is None:
        return logits_BC
    mask = allowed(ids_BT) if callable(allowed) else allowed.expand_as(logits_BC)
    if not bool(mask.any(dim=-1).all()):
        raise VlaError('generate: no token at all is allowed next; check the range of ids.')
    return logits_BC.masked_fill(~mask, -torch.inf)


def _choose(logits_BC: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature <= 0.0:
        return logits_BC.argmax(dim=-1)
    return torch.multinomial((logits_BC / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _read(model: KiVla, prefix: Prefix, context: Context, next_B: Tensor, index: int) -> tuple[Tensor, Context]:
    """Let the backbone read one more token; returns the output it gives and the context that now holds it."""
    x_B11D = model.embed_tokens(next_B[:, None, None])
    positions_B1 = masks.positions_after(prefix.length_B + index, 1)
    own = masks.everyone(1, next_B.device)
    hidden_B11D, keys, values = model.backbone.segment(x_B11D, positions_B1, context, own)
    k, v = (
        torch.stack([torch.cat([old[layer], new[:, 0]], dim=1) for layer, new in enumerate(fresh)])
        for old, fresh in ((context.k, keys), (context.v, values))
    )
    sees = torch.cat([context.sees_BQS, context.sees_BQS.new_ones(len(next_B), 1, 1)], dim=2)
    return hidden_B11D[:, 0, 0], Context(k, v, sees)
