"""Rates with Wilson intervals, and differences of recipes by a bootstrap over seeds and scenes.

A difference is taken over what two recipes have in common: the same seeds and scenes are drawn for both, seeds and
scenes each with replacement, so that neither a lucky seed nor an easy scene is taken for a better recipe. Two scenes
are added, one won by each (as Agresti and Caffo do for rates): else a few scenes that end alike would seem certain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ki.evidence.cells import EvidenceCell, PlayedEpisode

RESAMPLES = 2000
Measure = Callable[[Sequence[PlayedEpisode]], float]  # of the episodes of one scene


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, over `n` episodes (or pairs of them); None where there are none."""

    value: float
    low: float
    high: float
    n: int


def success(episodes: Sequence[PlayedEpisode]) -> float:
    """Share of the scene's episodes that succeed."""
    return float(np.mean([each.success for each in episodes]))


def score(episodes: Sequence[PlayedEpisode]) -> float:
    """Share of the objects that are where they belong."""
    return float(np.mean([each.score for each in episodes]))


def followed(episodes: Sequence[PlayedEpisode]) -> float:
    """Whether every instruction of the scene was followed: who hears no words follows half of them, and no pair."""
    return float(all(each.followed for each in episodes))


def duration(episodes: Sequence[PlayedEpisode]) -> float:
    """Seconds of an episode on the wall: those that pass in the simulator, and those that the policy thinks."""
    return float(np.mean([each.time_s + each.think_s for each in episodes]))


def by_scene(episodes: Sequence[PlayedEpisode], measure: Measure) -> dict[tuple[str, int], float]:
    """A measure for each scene."""
    scenes: dict[tuple[str, int], list[PlayedEpisode]] = {}
    for each in episodes:
        scenes.setdefault(each.scene, []).append(each)
    return {scene: measure(found) for scene, found in scenes.items()}


def share(cells: Sequence[EvidenceCell], measure: Measure, part: str = 'episodes') -> Estimate | None:
    """A rate over all cells of a recipe, with a Wilson interval; None without episodes."""
    from ki_sim.evaluate.closed_loop import wilson

    values = [value for cell in cells for value in by_scene(getattr(cell, part), measure).values()]
    counted = sum(len(getattr(cell, part)) for cell in cells) if measure is success else len(values)
    if not values:
        return None
    mean = float(np.mean(values))
    low, high = wilson(round(mean * counted), counted)
    return Estimate(mean, low, high, counted)


def mean(cells: Sequence[EvidenceCell], measure: Measure, part: str = 'episodes') -> Estimate | None:
    """A mean that is no rate, with a bootstrap interval over seeds and scenes; None without episodes."""
    grid = _grid(cells, measure, part)
    if grid is None:
        return None
    return _resampled(grid, grid)


def difference(
    one: Sequence[EvidenceCell], other: Sequence[EvidenceCell], measure: Measure, part: str = 'episodes', seed: int = 0
) -> Estimate | None:
    """How much more one recipe has of a measure than another, over the seeds and scenes of both; None without any."""
    seeds = {cell.seed for cell in one} & {cell.seed for cell in other}
    ours, theirs = ([cell for cell in cells if cell.seed in seeds] for cells in (one, other))
    scenes = _scenes(ours, part) & _scenes(theirs, part)
    a, b = (_grid(cells, measure, part, scenes) for cells in (ours, theirs))
    if a is None or b is None:
        return None
    gap = a - b
    return _resampled(gap, np.concatenate([gap, np.ones((len(gap), 1)), -np.ones((len(gap), 1))], axis=1), seed)


def _scenes(cells: Sequence[EvidenceCell], part: str) -> set[tuple[str, int]]:
    """Scenes that every cell has."""
    found = [{each.scene for each in getattr(cell, part)} for cell in cells]
    return set.intersection(*found) if found else set()


def _grid(
    cells: Sequence[EvidenceCell], measure: Measure, part: str, scenes: set[tuple[str, int]] | None = None
) -> NDArray[np.float64] | None:
    """Values (seeds, scenes)."""
    scenes = _scenes(cells, part) if scenes is None else scenes
    if not cells or not scenes:
        return None
    rows = [by_scene(getattr(cell, part), measure) for cell in sorted(cells, key=lambda cell: cell.seed)]
    return np.array([[row[scene] for scene in sorted(scenes)] for row in rows])


def _resampled(grid: NDArray[np.float64], drawn: NDArray[np.float64], seed: int = 0) -> Estimate:
    """The mean of a grid (seeds, scenes), with the interval of means of what is drawn from another."""
    rng, (seeds, scenes) = np.random.default_rng(seed), drawn.shape
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(scenes, size=scenes)
        means[i] = drawn[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(grid.mean()), float(low), float(high), grid.size)
