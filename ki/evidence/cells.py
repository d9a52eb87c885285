"""Cells: what came of one recipe, seed and point of training. A file each, committed; the figures are made of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ki.evidence.matrix import EvidenceError
from ki_common.files import write_text

COLUMNS = ('seed', 'goal', 'success', 'followed', 'score', 'time_s', 'think_s')
START = 'start'  # the "recipe" of the bundle that all start from


@dataclass(frozen=True)
class PlayedEpisode:
    """One episode of a cell."""

    task: str
    seed: int
    goal: int
    success: bool
    followed: bool
    score: float
    time_s: float
    think_s: float

    @property
    def scene(self) -> tuple[str, int]:
        """What recipes have in common."""
        return self.task, self.seed


@dataclass(frozen=True)
class EvidenceCell:
    """One recipe, seed and point.

    Attributes:
        recipe, seed, samples: which.
        plan: digest of the matrix that it is of.
        episodes: known objects, every scene with two instructions.
        heldout: objects that no action data shows.
        questions: `accuracy`, `asked` and `kinds`, as `ki eval data` has them; empty where none were asked.
        train_s: wall time of the training up to here, s; 0 where unknown.
        error: why there are no episodes.
    """

    recipe: str
    seed: int
    samples: int
    plan: str
    episodes: tuple[PlayedEpisode, ...] = ()
    heldout: tuple[PlayedEpisode, ...] = ()
    questions: Mapping[str, Any] = field(default_factory=dict)
    train_s: float = 0.0
    error: str = ''

    @property
    def name(self) -> str:
        """Of its file, without suffix."""
        return f'{self.recipe}-{self.seed}-{self.samples}'

    def save(self, folder: Path) -> Path:
        """Writes it, whole or not at all."""
        data = asdict(self) | {part: _packed(getattr(self, part)) for part in ('episodes', 'heldout')}
        path = folder / f'{self.name}.json'
        write_text(path, json.dumps(data, sort_keys=True) + '\n')
        return path


def load_cell(path: Path) -> EvidenceCell:
    """A cell from its file.

    Raises:
        EvidenceError: it is damaged.
    """
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
        return EvidenceCell(**data | {part: _unpacked(data[part]) for part in ('episodes', 'heldout')})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f'{path} is no cell ({error}); remove it, and `ki evidence run` makes it again.') from error


def load_cells(folder: Path, plan: str | None = None) -> list[EvidenceCell]:
    """All cells of a folder, of one plan if it is given; those of others were made with other settings."""
    cells = [load_cell(path) for path in sorted(folder.glob('*.json'))]
    return [cell for cell in cells if plan is None or cell.plan == plan]


def episodes_of(task: str, outcomes: Iterable[Any]) -> list[PlayedEpisode]:
    """The outcomes of an evaluation (`ki_sim.evaluate.closed_loop.SceneOutcome`) as episodes of a cell."""
    return [
        PlayedEpisode(
            task,
            each.seed,
            each.goal_seed,
            each.success,
            each.followed,
            round(each.score, 3),
            round(each.time_s, 3),
            round(each.think_s, 3),
        )
        for each in outcomes
    ]


def _packed(episodes: Sequence[PlayedEpisode]) -> dict[str, list[list[Any]]]:
    """By task, a short row for each."""
    found: dict[str, list[list[Any]]] = {}
    for each in episodes:
        row = [getattr(each, name) for name in COLUMNS]
        found.setdefault(each.task, []).append([int(v) if isinstance(v, bool) else v for v in row])
    return found


def _unpacked(data: Mapping[str, list[list[Any]]]) -> tuple[PlayedEpisode, ...]:
    return tuple(
        PlayedEpisode(task, int(row[0]), int(row[1]), bool(row[2]), bool(row[3]), *map(float, row[4:]))
        for task, rows in data.items()
        for row in rows
        if len(row) == len(COLUMNS) or _refuse(row)
    )


def _refuse(row: list[Any]) -> bool:
    raise ValueError(f'an episode has {len(row)} numbers, not {len(COLUMNS)}')
