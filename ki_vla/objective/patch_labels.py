"""What a picture shows, as labels of its patches: for the heads that only training has (`ki_vla.model.dense`).

Legend: V views, N patches of a view, K labels, M places pointed at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ki_vla.errors import VlaError
from ki_vla.model.config import POINTS, DenseConfig, ModelConfig

UNKNOWN, NOTHING = -1, 0  # of a label: nobody has looked; none of its words
BESIDE = 0.5  # of the view: how far from its edge a thing that has left it is said to be, at most


@dataclass(frozen=True)
class Thing:
    """Something in the first view: where its middle is, and the words that name it.

    Attributes:
        x, y: 0..1 of the square that the model is shown, from the left and from the top.
        words: by name of a label; a label that is not named is unknown.
    """

    x: float
    y: float
    words: Mapping[str, str]

    @property
    def is_inside(self) -> bool:
        """Whether its middle is within the view."""
        return 0.0 <= self.x < 1.0 and 0.0 <= self.y < 1.0


def patch_labels(
    config: ModelConfig,
    views: int,
    things: Sequence[Thing] | None,
    points: Sequence[tuple[float, float] | None] = (None,) * POINTS,
) -> dict[str, np.ndarray]:
    """Labels for `ki_vla.objective.batch.collate`, for a model with heads for them.

    Args:
        config: of the model.
        views: how many the example has.
        things: everything that is in the first view, farthest first: of two in one patch, the nearer one names it. None
            where nobody has looked.
        points: where in the first view the thing is that is acted on, and that which it is put on or beside. One that
            has left the view stands beside it, on the side where it is: who says nothing of a thing that is carried out
            of sight learns to point at another one.

    Raises:
        VlaError: a thing has a word that the model does not know.
    """
    assert config.dense is not None
    side = config.vision.image_size // config.vision.patch_size
    labels_VNK = np.full((views, side * side, len(config.dense.labels)), UNKNOWN, dtype=np.int64)
    offset_VN2 = np.full((views, side * side, 2), np.nan, dtype=np.float32)
    if things is not None:
        labels_VNK[0] = NOTHING
        for thing in things:
            if thing.is_inside:
                column, row = int(thing.x * side), int(thing.y * side)
                patch = row * side + column
                labels_VNK[0, patch] = _words(config.dense, thing.words)
                offset_VN2[0, patch] = thing.x * side - column - 0.5, thing.y * side - row - 0.5
    unknown = (np.nan, np.nan)
    points_M2 = np.array([unknown if each is None else each for each in points], np.float32).clip(-BESIDE, 1 + BESIDE)
    return {'dense_VNK': labels_VNK, 'offset_VN2': offset_VN2, 'points_M2': points_M2}


def _words(dense: DenseConfig, words: Mapping[str, str]) -> list[int]:
    """The number of a thing's word for each label."""
    found = []
    for name, known in dense.labels.items():
        word = words.get(name)
        if word is not None and word not in known:
            raise VlaError(f'{name} {word!r} of a thing is none of model.dense.labels.{name}: {", ".join(known)}.')
        found.append(UNKNOWN if word is None else known.index(word) + 1)
    return found
