"""L = L_VLM + L_FAST + alpha L_FLOW, each under its own mask (paper, equation 4).

The two token losses are one cross-entropy over all target positions under M_l; they are told apart only for the report.

Shape legend: B batch, T target tokens, P selected positions, D width, C vocabulary, R draws, H horizon, A action dims.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGIT_ROWS = 1024


@dataclass(frozen=True)
class Losses:
    """Scalars of one batch; train on `total`.

    `tokens` is the mean over text and action tokens together, the trained one; `text` and `fast` are its two parts,
    each over its own `*_count` of tokens; `flow` is over `action_count` action entries; `dense`, of heads for training
    only, is over `dense_count` examples. A loss without entries is 0.
    """

    total: Tensor
    tokens: Tensor
    text: Tensor
    fast: Tensor
    flow: Tensor
    text_count: Tensor
    fast_count: Tensor
    action_count: Tensor
    dense: Tensor
    dense_count: Tensor

    @classmethod
    def of_actions(cls, flow: Tensor, alpha: float, action_count: Tensor) -> Losses:
        """Of the actions alone."""
        zero, none = flow.new_zeros(()), action_count.new_zeros(())
        return cls(alpha * flow, zero, zero, zero, flow, none, none, action_count, zero, none)

    def report(self) -> dict[str, float]:
        """Plain numbers (this waits for the device)."""
        return {
            name: float(getattr(self, name).detach()) for name in ('total', 'tokens', 'text', 'fast', 'flow', 'dense')
        }


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values under a mask that broadcasts over them; 0 (with a graph) when it is empty."""
    mask = mask.expand_as(values)
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def action_loss(predicted_BRHA: Tensor, wanted_BRHA: Tensor, mask_BRHA: Tensor, kind: str) -> Tensor:
    """Squared ('flow') or absolute ('l1') error over the unmasked entries, mean over entries and draws."""
    error = predicted_BRHA.float() - wanted_BRHA.float()
    return masked_mean(error.abs() if kind == 'l1' else error.square(), mask_BRHA)


def token_losses(hidden_PD: Tensor, embed_CD: Tensor, ids_P: Tensor) -> Tensor:
    """Cross-entropy at each position, float32 [P].

    The logits over the whole vocabulary are the largest tensor of a step: they exist for `LOGIT_ROWS` positions at a
    time and are computed again in the backward pass.
    """
    if len(ids_P) <= LOGIT_ROWS:
        return _cross_entropy(hidden_PD, embed_CD, ids_P)
    parts = zip(hidden_PD.split(LOGIT_ROWS), ids_P.split(LOGIT_ROWS), strict=True)
    return torch.cat([checkpoint(_cross_entropy, hidden, embed_CD, ids, use_reentrant=False) for hidden, ids in parts])


def _cross_entropy(hidden_PD: Tensor, embed_CD: Tensor, ids_P: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden_PD, embed_CD).float(), ids_P, reduction='none')
