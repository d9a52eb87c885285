"""From a checkpoint of a run to a bundle: the weights to run with, without what only training needs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ki_common.files import atomic_folder, read_json
from ki_vla.errors import VlaError
from ki_vla.model.config import HEAD, PARTS, ModelConfig
from ki_vla.model.kivla import KiVla
from ki_vla.objective.recipes import recipe
from ki_vla.objective.trainable import parts_of
from ki_vla.policy.bundle import CODEC, load_bundle, read_parts, write_bundle, write_parts
from ki_vla.policy.processor import Processor
from ki_vla.policy.serving import Serving
from training.errors import TrainingError
from training.fit.fitted_artifacts import digests
from training.fit.start_from import Taken
from training.train.checkpoint import checkpoints, read_state, shipped_weights
from training.train.config import Run, Stage, load_run

POLICY, ORIGIN, TAKEN = 'policy', 'origin.json', 'taken.json'  # of a run
TRAINING_ONLY = 'dense.'  # how the names of weights begin that no bundle has


@dataclass(frozen=True)
class Shipment:
    """A policy of a run, ready to be written as a bundle.

    Attributes:
        run: which.
        stage: whose weights.
        processor: as the run trains with.
        data_origin: which data it is of, as plain data.
        taken: what became of the weights of the bundle that the run started from.
        step: of the stage, among its checkpoints; the last one unless given.
    """

    run: Run
    stage: Stage
    processor: Processor
    data_origin: Mapping[str, Any]
    taken: Taken | None = None
    step: int | None = None

    def write(self, bundle: Path) -> None:
        """Writes the bundle, in place of one that is there."""
        done = self.run.stages[: self.run.stages.index(self.stage) + 1]
        steps = {stage.name: stage.steps for stage in done}
        steps[self.stage.name] = int(read_state(self._checkpoint)['step'])
        write_bundle(
            bundle,
            name=self.run.name,
            weights=self._weights(),
            processor=self._processor(),
            serving=self._serving(),
            recipe=json.loads(json.dumps(asdict(recipe(self.stage.recipe)))),
            provenance={
                **self.data_origin,
                'steps': steps,
                'trained': trained_parts(self.run, self.processor.config, self.stage, self.taken),
                'run': self.run.to_dict(),
            },
            overwrite=True,
        )

    def is_in(self, bundle: Path) -> bool:
        """Whether the bundle that is there is this policy already: writing it again would take its exports away."""
        try:
            there = load_bundle(bundle)
        except VlaError:
            return False
        ours, theirs = (
            (each.contract, each.config, each.processing, digests(each))
            for each in (self._processor(), there.processor)
        )
        if there.name != self.run.name or ours != theirs or there.serving != self._serving():
            return False
        wanted, found = self._weights(), load_file(there.weights)
        return wanted.keys() == found.keys() and all(torch.equal(value, found[name]) for name, value in wanted.items())

    @property
    def _checkpoint(self) -> Path:
        if self.step is None:
            return last_checkpoint(self.run, self.stage)
        return store_of(self.run, self.stage) / f'{self.step:08d}'

    def _weights(self) -> dict[str, Tensor]:
        weights = shipped_weights(self._checkpoint)
        return {name: value for name, value in weights.items() if not name.startswith(TRAINING_ONLY)}

    def _processor(self) -> Processor:
        return replace(self.processor, config=self.processor.config.replace(dense=None))

    def _serving(self) -> Serving:
        said = self.run.served.to_dict()
        return self._usual_serving().replace(**{name: value for name, value in said.items() if value is not None})

    def _usual_serving(self) -> Serving:
        """The policy continues chunks over the delays that the last stage with actions trained."""
        before = self.run.stages[: self.run.stages.index(self.stage) + 1]
        delays = [stage.max_delay or 0 for stage in before if stage.actions + stage.starts > 0]
        horizon, delay = self.processor.config.horizon, delays[-1] if delays else 0
        found = Serving.for_horizon(horizon, delay, 'tokens' if recipe(self.stage.recipe).loss == 'none' else 'actions')
        if self.run.start is None:
            return found
        start = load_bundle(self.run.start, verify=False)
        kept = start.serving
        if start.config.horizon != horizon:
            return found.replace(denoise_steps=kept.denoise_steps)
        if kept.max_delay == found.max_delay and kept.decode == found.decode:
            return kept
        return kept.replace(mode=found.mode, max_delay=found.max_delay, decode=found.decode)


@dataclass(frozen=True)
class CheckpointBundle:
    """A checkpoint of a run, as a bundle."""

    stage: str
    step: int
    samples: int
    bundle: Path


def save_policy(out: Path, processor: Processor, taken: Taken | None) -> None:
    """What a checkpoint of a run lacks to be a bundle, in OUT/policy; a disk that is full raises OSError."""
    with atomic_folder(out / POLICY) as partial:
        write_parts(partial, processor, Serving.for_horizon(processor.config.horizon), {})
        (partial / TAKEN).write_text(json.dumps(None if taken is None else asdict(taken)), encoding='utf-8')


def bundles_of(out: Path, every: int = 0, stages: Sequence[str] = ()) -> list[CheckpointBundle]:
    """Bundles of a run's checkpoints, in the order of training; those that are there already stay.

    Args:
        out: the run's folder.
        every: those at multiples of so many steps of a stage, and the last of each stage; 0: these alone.
        stages: of which; all of them unless given.

    Raises:
        TrainingError: no run is there, or it has no such stage or checkpoint.
    """
    path = out / 'config.yaml'
    if not path.is_file() or not (out / POLICY).is_dir():
        raise TrainingError(f'{out} is no run of `ki train`; give its folder (out).')
    run = load_run(path, out=str(out))
    unknown = sorted(set(stages) - {stage.name for stage in run.stages})
    if unknown:
        known = ', '.join(stage.name for stage in run.stages)
        raise TrainingError(f'{out} has no stage {unknown[0]}; choose of {known}.')
    processor, _ = read_parts(out / POLICY, (out / POLICY / CODEC).is_file())
    told = json.loads((out / POLICY / TAKEN).read_text(encoding='utf-8'))
    taken = None if told is None else Taken(**{name: _tuples(value) for name, value in told.items()})
    origin = read_json(out / ORIGIN, TrainingError)
    found: list[CheckpointBundle] = []
    before = 0
    for stage in run.stages:
        there = checkpoints(store_of(run, stage))
        for checkpoint in there if not stages or stage.name in stages else []:
            step = int(checkpoint.name)
            if checkpoint == there[-1] or (every and step % every == 0):
                bundle = out / stage.name / 'bundles' / checkpoint.name
                shipment = Shipment(run, stage, processor, origin, taken, step)
                if not shipment.is_in(bundle):
                    shipment.write(bundle)
                found.append(CheckpointBundle(stage.name, step, before + step * stage.batch, bundle))
        before += stage.steps * stage.batch
    if not found:
        raise TrainingError(f'{out} has no checkpoint yet; train it first (ki train).')
    return found


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def store_of(run: Run, stage: Stage) -> Path:
    """The folder of a stage's checkpoints."""
    return Path(run.out) / stage.name / 'checkpoints'


def last_checkpoint(run: Run, stage: Stage) -> Path:
    """The newest checkpoint of a stage.

    Raises:
        TrainingError: there is none.
    """
    found = checkpoints(store_of(run, stage))
    if not found:
        raise TrainingError(f'{store_of(run, stage)} holds no checkpoint; train the stage first (ki train).')
    return found[-1]


def weights_of(checkpoint: Path, config: ModelConfig) -> KiVla:
    """A model with the weights that a checkpoint would ship."""
    model = KiVla(config)
    model.load_state_dict(shipped_weights(checkpoint))
    return model


def trained_parts(run: Run, config: ModelConfig, until: Stage | None = None, taken: Taken | None = None) -> list[str]:
    """The parts of the model that this run, or the training of the bundle that it started from, has changed.

    Args:
        run: with its stages.
        config: the model.
        until: the last stage that counts; all of them unless given.
        taken: what became of the weights of that bundle: an action head that began anew was not trained before.
    """
    parts: set[str] = set()
    if run.start is not None:
        before = load_bundle(run.start, verify=False).trained_parts
        parts = set(PARTS if before is None else before)
        if taken is not None and any(name.startswith(f'{HEAD}.') for name in taken.fresh):
            parts.discard(HEAD)
    last = len(run.stages) if until is None else run.stages.index(until) + 1
    for stage in run.stages[:last]:
        parts |= parts_of(stage.trains, config, actions=stage.actions + stage.starts > 0)
    return sorted(parts)
