"""The matrix: recipes, seeds and points of training, and how each is judged (`benchmarks/evidence/matrix.yaml`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_common.configuration.types import Words
from ki_common.configuration.yaml_reader import read_yaml
from ki_common.errors import KiError
from ki_common.files import sha256_of
from ki_robot.contract.contract import load_contract

if TYPE_CHECKING:
    from training.train.config import Run


class EvidenceError(KiError):
    """A matrix that cannot be run, or cells that cannot be read."""


class EvidenceMatrix(Config):
    """Recipes by seeds, each looked at several times while it trains."""

    raises: ClassVar[type[KiError]] = EvidenceError

    run: str
    """The run that every recipe trains (YAML as in config/train/), beside the matrix; its one stage gets the recipe."""
    recipes: Words
    """Recipes of docs/recipes.md, the ones to be run first in front."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0, 1, 2), min_length=1)
    """Of weights, draws and noise."""
    samples: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10_000, 25_000, 50_000, 100_000), min_length=1)
    """Points of training at which a policy is judged, in samples; the last one ends it."""
    tasks: Words = ('suite',)
    """Tasks of the simulator."""
    scenes: int = Field(default=100, ge=1)
    """Scenes at the last point, each with two instructions, shared out among the tasks; the same for every recipe."""
    curve_scenes: int = Field(default=24, ge=1)
    """The same at the points before."""
    heldout_scenes: int = Field(default=48, ge=0)
    """Scenes with objects that no action data shows, at the last point."""
    first_seed: int = Field(default=1_000_000, ge=0)
    """First scene of each task; no data uses seeds this high."""
    questions: int = Field(default=400, ge=0)
    """Held-out questions, at the last point and of the start."""
    execute_steps: int = Field(default=8, ge=1)
    """Steps of a chunk after which the next is planned."""
    delay_steps: int = Field(default=0, ge=0)
    """Steps that an inference is thought to take."""
    image_size: int | None = Field(default=None, ge=8)
    """Rows and columns of the cameras. Left out: as many as fill the view of a policy after its crop."""

    @model_validator(mode='after')
    def _points_ascend(self) -> Self:
        if not self.recipes:
            raise ValueError('recipes is empty; name those to be compared')
        if list(self.samples) != sorted(set(self.samples)):
            raise ValueError(f'samples is {list(self.samples)}; write each once, the smallest first')
        if len(set(self.recipes)) < len(self.recipes) or len(set(self.seeds)) < len(self.seeds):
            raise ValueError('recipes and seeds: write each once')
        return self

    @property
    def task_names(self) -> list[str]:
        """All tasks."""
        from ki_sim.tasks.tasks import task_names

        return task_names(self.tasks)

    def scenes_of(self, task: str, count: int) -> range:
        """Seeds of a task's share of `count` scenes; the first tasks take what does not divide."""
        names = self.task_names
        place, share = names.index(task), count // len(names)
        return range(self.first_seed, self.first_seed + share + (place < count % len(names)))


@dataclass(frozen=True)
class MatrixPlan:
    """A matrix with the run that it trains.

    Attributes:
        matrix: what is judged, and how.
        base: the run, for any recipe.
        folder: where the matrix lies, with `cells/` beside it.
        written: both files as they are written: a field with a new default makes no cell void.
    """

    matrix: EvidenceMatrix
    base: Run
    folder: Path
    written: tuple[Mapping[str, Any], Mapping[str, Any]]

    @property
    def digest(self) -> str:
        """Of everything that a cell depends on besides recipe, seed and point; how much is judged is not of it."""
        amounts = {'recipes', 'seeds', 'samples', 'scenes', 'curve_scenes', 'heldout_scenes', 'questions'}
        aside = amounts | {'out', 'device', 'workers', 'log_every', 'save_every', 'validate_every', 'validate_batches'}
        judged, trained = ({k: v for k, v in data.items() if k not in aside} for data in self.written)
        start = None if self.base.start is None else Path(self.base.start) / 'manifest.json'
        weights = sha256_of(start) if start is not None and start.is_file() else ''
        depends = [judged, trained, self.matrix.samples[-1], weights, load_contract(self.base.robot).hash]
        text = json.dumps(depends, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def steps_at(self, samples: int) -> int:
        """Optimiser steps after so many samples."""
        return samples // self.base.stages[0].batch

    def run_of(self, recipe: str, seed: int, out: Path) -> Run:
        """The run of a recipe and seed: checkpoints at every point, and nothing else differs from the base.

        What pictures show, in labels (`model.dense`), is knowledge, as words are: without language data there is none.
        """
        from ki_vla.objective.recipes import RECIPES

        steps = [self.steps_at(samples) for samples in self.matrix.samples]
        every = math.gcd(*steps)
        stage = self.base.stages[0].replace(recipe=recipe, steps=steps[-1])
        if not RECIPES[recipe].vlm_data:
            stage = stage.replace(dense=0.0)
        return self.base.replace(
            name=f'{recipe}_{seed}',
            out=str(out),
            seed=seed,
            simulate=None,
            stages=(stage.replace(warmup=min(stage.warmup, max(1, stage.steps // 10))),),
            save_every=every,
            keep=steps[-1] // every,
        )


def load_plan(path: Path) -> MatrixPlan:
    """A matrix from a YAML file.

    Raises:
        EvidenceError: no such file, a field that does not fit, or a base run with several stages.
    """
    from ki_vla.objective.recipes import RECIPES
    from training.train.config import load_run

    data = read_yaml(path, EvidenceError)
    matrix = EvidenceMatrix.parse(data, str(path))
    for name in matrix.recipes:
        if name not in RECIPES:
            raise EvidenceError(f'{path}: recipes has {name!r}; write names of {", ".join(RECIPES)}.')
    base = load_run(path.parent / matrix.run)
    if len(base.stages) != 1:
        where = path.parent / matrix.run
        raise EvidenceError(f'{where}: stages has {len(base.stages)}; write one, which gets the recipe.')
    batch = base.stages[0].batch
    odd = [samples for samples in matrix.samples if samples % batch]
    if odd:
        raise EvidenceError(f'{path}: samples has {odd[0]}; write a multiple of the batch of the run, {batch}.')
    return MatrixPlan(matrix, base, path.parent, (data, read_yaml(path.parent / matrix.run, EvidenceError)))
