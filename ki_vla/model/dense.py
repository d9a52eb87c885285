"""Heads for training only: what every patch shows, and where in the picture the thing is that the words ask for.

A small vision tower that is trained from nothing stays blind for thousands of steps when all it gets is the gradient of
a sentence or of an action. Two linear layers that name what each patch shows give it sight in minutes. No bundle has
them: they read image tokens and the last token of the prefix, and nothing reads them.

What is asked for is read on its way through the backbone, not at its end: the action expert sees keys and values of
layers, and no layer's are made of the last output. A place that only the last layer finds is lost to it.

Shape legend: B batch, V views, N patches a view, P = V * N, K labels, M places pointed at, D width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.model.config import POINTS, ModelConfig
from ki_vla.model.pointer import PlacePointer
from ki_vla.objective.batch import Batch
from ki_vla.objective.patch_labels import NOTHING, UNKNOWN

BETA = 0.05  # below this error, in patches, the loss of a thing's place in its patch is quadratic


def labelled(batch: Batch, pointer: bool) -> Tensor:
    """Which examples say something of their pictures, bool [B]; `pointer`: a place alone is something."""
    known_B = torch.zeros_like(batch.has_actions_B)
    if batch.dense_BVNK is not None:
        known_B = known_B | (batch.dense_BVNK != UNKNOWN).flatten(1).any(dim=1)
    if batch.points_BM2 is not None and pointer:
        known_B = known_B | batch.points_BM2.isfinite().flatten(1).any(dim=1)
    return known_B


class DenseHeads(nn.Module):
    """Linear layers on image tokens (labels, offset) and on the last token of the prefix (pointer)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.dense is not None
        D, self.settings = config.backbone.width, config.dense
        self.labels = nn.ModuleDict({name: nn.Linear(D, len(words) + 1) for name, words in config.dense.labels.items()})
        self.offset = nn.Linear(D, 2)
        self.pointer = PlacePointer(D) if config.pointer is None else None
        self.asked = nn.Linear(D, POINTS)

    def loss(
        self, tokens_BPD: Tensor, passing_BnD: tuple[Tensor, ...], batch: Batch, pointer: PlacePointer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean loss over the examples that say what their pictures show, and how many these are.

        Args:
            tokens_BPD: image tokens as the backbone reads them.
            passing_BnD: the last token of the prefix, then the image tokens of the first view, which have read the
                words, after some layers [B, 1 + N, D] each; none leaves out what is asked for.
            batch: with `dense_BVNK`, `offset_BVN2` and `points_BM2`; without them the loss is 0 of 0 examples.
            pointer: that of a model which has one; by default these heads' own.
        """
        tokens_BPD = tokens_BPD.float()
        if batch.dense_BVNK is None or batch.offset_BVN2 is None or batch.points_BM2 is None:
            return tokens_BPD.sum() * 0.0, batch.action_mask_BHA.new_zeros((), dtype=torch.int64)
        labels_BPK = batch.dense_BVNK.flatten(1, 2)
        loss_B = self._label_loss(tokens_BPD, labels_BPK) + self._offset_loss(tokens_BPD, batch.offset_BVN2)
        pointer = pointer or cast(PlacePointer, self.pointer)
        for each_BnD in passing_BnD:
            pointed_B = pointer.loss(each_BnD[:, 0].float(), batch.points_BM2)
            pointed_B = pointed_B + self._asked_loss(each_BnD[:, 1:].float(), batch.points_BM2)
            loss_B = loss_B + pointed_B / len(passing_BnD)
        known_B = labelled(batch, bool(passing_BnD))
        count = known_B.sum()
        return torch.where(known_B, loss_B, 0.0).sum() / count.clamp(min=1), count

    def _label_loss(self, tokens_BPD: Tensor, labels_BPK: Tensor) -> Tensor:
        """Cross-entropy [B], mean over labels and, by weight, over patches."""
        total_B = tokens_BPD.new_zeros(len(tokens_BPD))
        for index, head in enumerate(self.labels.values()):
            wanted_BP = labels_BPK[..., index]
            weight_BP = torch.where(wanted_BP == NOTHING, self.settings.background, 1.0) * (wanted_BP != UNKNOWN)
            logits_BCP = cast(nn.Linear, head)(tokens_BPD).float().transpose(1, 2)
            loss_BP = F.cross_entropy(logits_BCP, wanted_BP.clamp(min=0), reduction='none')
            total_B = total_B + (loss_BP * weight_BP).sum(1) / weight_BP.sum(1).clamp(min=self.settings.background)
        return total_B / len(self.labels)

    def _offset_loss(self, tokens_BPD: Tensor, offset_BVN2: Tensor) -> Tensor:
        """How far a thing's middle is from that of its patch, in patches; mean over patches with a thing [B]."""
        wanted_BP2 = offset_BVN2.flatten(1, 2)
        there_BP = wanted_BP2.isfinite().all(dim=-1)
        found_BP2 = self.offset(tokens_BPD).float()
        loss_BP = F.smooth_l1_loss(found_BP2, wanted_BP2.nan_to_num(), reduction='none', beta=BETA).sum(-1)
        return torch.where(there_BP, loss_BP, 0.0).sum(1) / there_BP.sum(1).clamp(min=1)

    def _asked_loss(self, first_view_BND: Tensor, points_BM2: Tensor) -> Tensor:
        """Which patch of the first view has the things asked for, where it has them: cross-entropy over patches [B].

        Each patch need only compare the words with what it shows itself, so this is learned long before the last token
        of the prefix has learned to look for it.
        """
        there_BM, side = ((points_BM2 >= 0) & (points_BM2 < 1)).all(dim=-1), math.isqrt(first_view_BND.shape[1])
        at_BM2 = (points_BM2.nan_to_num(0.5) * side).long().clamp(0, side - 1)
        logits_BNM = self.asked(first_view_BND).float()
        loss_BM = F.cross_entropy(logits_BNM, at_BM2[..., 1] * side + at_BM2[..., 0], reduction='none')
        return torch.where(there_BM, loss_BM, 0.0).sum(-1)
