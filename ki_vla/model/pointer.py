"""Where in the first view the things are that the words ask for, as the last token of the prefix says it on its way.

There are two: what is acted on, and what that is put on or beside.

A teacher of the backbone, among the heads for training only (`ki_vla.model.dense`). As `model.pointer` it is also a
voice: the action expert hears the places beside the state. In training too it hears the backbone's own word and not the
truth, so that it learns how far to believe it. Under insulation no gradient of the actions passes, as through words.

Shape legend: B batch, M places, D width, C = M * (2 * cells + 2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.model.config import POINTS

CELLS = 12  # along a side of the view, where nobody says otherwise
POINT_SCALE = 0.25  # places are learned in units of this share of a picture, which is about how far they scatter
POINT_WEIGHT = 2.0  # of the place as numbers, against the cell in which it lies
BETA = 0.1  # below this error, in those units, the loss is quadratic


class PlacePointer(nn.Module):
    """Each place as two numbers, and the cell in which it lies by column and row, which says how sure it is."""

    def __init__(self, width: int, cells: int = CELLS) -> None:
        super().__init__()
        self.cells = cells
        self.cell_x, self.cell_y = nn.Linear(width, POINTS * cells), nn.Linear(width, POINTS * cells)
        self.point_in, self.point_out = nn.Linear(width, width), nn.Linear(width, POINTS * 2)

    def places(self, passing_BD: Tensor) -> Tensor:
        """The normed last token of the prefix -> x and y from the middle, in units of POINT_SCALE [B, M, 2]."""
        found: Tensor = self.point_out(F.gelu(self.point_in(passing_BD))).float()
        return found.reshape(len(found), POINTS, 2)

    def cell_logits(self, passing_BD: Tensor) -> tuple[Tensor, Tensor]:
        """How likely every column and every row is, [B, M, cells] each."""
        columns, rows = (head(passing_BD).float().unflatten(-1, (POINTS, -1)) for head in (self.cell_x, self.cell_y))
        return columns, rows

    def forward(self, passing_BD: Tensor) -> Tensor:
        """What the expert hears [B, C]: the likelihood of columns and of rows, then the places."""
        columns_BMc, rows_BMc = self.cell_logits(passing_BD)
        parts = (columns_BMc.softmax(-1), rows_BMc.softmax(-1), self.places(passing_BD))
        return torch.cat([each.flatten(1) for each in parts], dim=-1)

    def heard(self, said_BC: Tensor) -> Tensor:
        """The places in what the expert hears: x and y from 0 to 1 of the view, beyond that outside of it [B, M, 2]."""
        places_BM2: Tensor = said_BC[:, -2 * POINTS :].unflatten(-1, (POINTS, 2))
        return places_BM2 * POINT_SCALE + 0.5

    def loss(self, passing_BD: Tensor, points_BM2: Tensor) -> Tensor:
        """The cells of the things asked for, and their places as numbers, summed over the places that there are [B]."""
        there_BM = points_BM2.isfinite().all(dim=-1)
        place_BM2 = points_BM2.nan_to_num(0.5)
        cell_BM2 = (place_BM2 * self.cells).long().clamp(0, self.cells - 1)
        columns_BMc, rows_BMc = self.cell_logits(passing_BD)
        loss_BM = F.cross_entropy(columns_BMc.transpose(1, 2), cell_BM2[..., 0], reduction='none')
        loss_BM = loss_BM + F.cross_entropy(rows_BMc.transpose(1, 2), cell_BM2[..., 1], reduction='none')
        wanted_BM2 = (place_BM2 - 0.5) / POINT_SCALE
        near_BM = F.smooth_l1_loss(self.places(passing_BD), wanted_BM2, reduction='none', beta=BETA).sum(-1)
        return torch.where(there_BM, 0.5 * loss_BM + POINT_WEIGHT * near_BM, 0.0).sum(-1)
