"""Where in the first view the thing is that the words ask for, as the last token of the prefix says it on its way.

A teacher of the backbone, among the heads for training only (`ki_vla.model.dense`). As `model.pointer` it is also a
voice: the action expert hears the place beside the state. In training too it hears the backbone's own word and not the
truth, so that it learns how far to believe it. Under insulation no gradient of the actions passes, as through words.

Shape legend: B batch, D width, C = 2 * cells + 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELLS = 12  # along a side of the view, where nobody says otherwise
POINT_SCALE = 0.25  # places are learned in units of this share of a picture, which is about how far they scatter
POINT_WEIGHT = 2.0  # of the place as numbers, against the cell in which it lies
BETA = 0.1  # below this error, in those units, the loss is quadratic


class Pointer(nn.Module):
    """The place as two numbers, and the cell in which it lies by column and row, which says how sure it is."""

    def __init__(self, width: int, cells: int = CELLS) -> None:
        super().__init__()
        self.cells = cells
        self.cell_x, self.cell_y = nn.Linear(width, cells), nn.Linear(width, cells)
        self.point_in, self.point_out = nn.Linear(width, width), nn.Linear(width, 2)

    def place(self, passing_BD: Tensor) -> Tensor:
        """The normed last token of the prefix -> x and y from the middle, in units of POINT_SCALE [B, 2]."""
        found: Tensor = self.point_out(F.gelu(self.point_in(passing_BD)))
        return found

    def forward(self, passing_BD: Tensor) -> Tensor:
        """What the expert hears [B, C]: the likelihood of columns and of rows, then the place."""
        columns, rows = (head(passing_BD).float().softmax(-1) for head in (self.cell_x, self.cell_y))
        return torch.cat([columns, rows, self.place(passing_BD).float()], dim=-1)

    def loss(self, passing_BD: Tensor, point_B2: Tensor) -> Tensor:
        """The cell of the thing asked for, by column and row, and its place as two numbers [B]; 0 where NaN."""
        there_B = point_B2.isfinite().all(dim=1)
        place_B2 = point_B2.nan_to_num(0.5)
        cell_B2 = (place_B2 * self.cells).long().clamp(0, self.cells - 1)
        loss_B = F.cross_entropy(self.cell_x(passing_BD).float(), cell_B2[:, 0], reduction='none')
        loss_B = loss_B + F.cross_entropy(self.cell_y(passing_BD).float(), cell_B2[:, 1], reduction='none')
        wanted_B2 = (place_B2 - 0.5) / POINT_SCALE
        near_B = F.smooth_l1_loss(self.place(passing_BD).float(), wanted_B2, reduction='none', beta=BETA).sum(1)
        return torch.where(there_B, 0.5 * loss_B + POINT_WEIGHT * near_B, 0.0)
