"""Starting from a bundle: what a run keeps of it unless it says otherwise, and which weights it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file

from ki_robot.contract.contract import Contract
from ki_robot.transforms import Stats, scaling_of
from ki_vla.model.config import ModelConfig
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle
from ki_vla.policy.model_inputs import JpegDecode, Processing
from training.errors import TrainingError
from training.fit.stats import compute_stats, with_moving
from training.samples.dataset import EpisodeDataset
from training.train.config import Run, Tokens

KEEP, REFIT = 'keep', 'refit'
DEFAULTS: dict[str, Any] = {'flow_scale': 'column', 'pad_steps': 'mask', 'subtasks': False}
SHOWN = 6  # names of a list that are told


@dataclass(frozen=True)
class Taken:
    """What became of the weights of a model that started from a bundle.

    Attributes:
        taken: names of weights that are the bundle's.
        fresh: names of weights that begin anew.
        left: names of the bundle's weights that the model has no place for.
        numbers: how many numbers were taken.
        changes: what the run does otherwise than the bundle, one sentence each.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    left: tuple[str, ...]
    numbers: int
    changes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
        found = [
            f'{len(self.taken)} of {len(self.taken) + len(self.fresh)} tensors ({self.numbers / 1e6:.2f} M numbers)'
        ]
        if self.fresh:
            found.append(f'begin anew: {_short(self.fresh)}')
        if self.left:
            found.append(f'not taken: {_short(self.left)}')
        return [*found, *self.changes]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {'taken': len(self.taken), 'fresh': self.fresh, 'left': self.left, 'changes': self.changes}


def settled(run: Run, start: Bundle | None, contract: Contract, shrunk: str = '') -> Run:
    """The run with every choice that it leaves to the bundle it starts from, or to a default, made.

    Args:
        run: as it was written.
        start: the bundle that it starts from.
        contract: of its recordings.
        shrunk: an index of these whose pictures were decoded whole and stored at the model's size; empty without one.

    Raises:
        TrainingError: it keeps statistics of other columns than its recordings have, or of no bundle; or it asks for
            pictures decoded otherwise than such an index holds them.
    """
    stats = run.stats or _stats_choice(start, contract)
    if stats == KEEP:
        if start is None:
            raise TrainingError('stats is keep, and start names no bundle whose statistics to keep; write refit.')
        start.check(contract)
    kept = None if start is None else start.processor.processing
    choices: dict[str, Any] = {'stats': stats}
    for name, default in DEFAULTS.items():
        said = getattr(run, name)
        choices[name] = said if said is not None else default if kept is None else getattr(kept, name)
    choices['jpeg_decode'] = _jpeg_decode(run, kept, shrunk)
    if run.normalisation is None:
        choices['normalisation'] = _normalisation(kept, stats)
    if start is None:
        choices |= {'tokens': run.tokens or Tokens(), 'preset': run.preset or 'tiny'}
    delay = 0 if start is None else min(start.serving.max_delay, start.config.horizon - 1)
    choices['stages'] = tuple(
        stage if stage.max_delay is not None else stage.replace(max_delay=delay) for stage in run.stages
    )
    return run.replace(**choices)


def _jpeg_decode(run: Run, kept: Processing | None, shrunk: str) -> JpegDecode:
    """As the run says, else as the bundle was trained, else what suits the pictures."""
    chosen = run.jpeg_decode
    if chosen is None:
        chosen = kept.jpeg_decode if kept is not None else 'full' if shrunk else 'reduced'
    if chosen == 'reduced' and shrunk:
        raise TrainingError(
            f"jpeg_decode is reduced, and {shrunk} holds pictures at the model's size, made of whole ones; "
            'write jpeg_decode: full, or index again with store: original.'
        )
    return chosen


def processing_of(run: Run, start: Bundle | None) -> Processing:
    """How a settled run processes its data: with the statistics of a bundle go the rules they were made for."""
    given = {
        'normalisation': run.normalisation,
        'jpeg_decode': run.jpeg_decode,
        **{name: getattr(run, name) for name in DEFAULTS},
    }
    if start is None:
        return Processing(**given)
    kept = start.processor.processing
    if run.stats != KEEP:
        kept = kept.replace(rules='ki', state_normalisation=None, state_text_columns=0)
    return kept.replace(**given)


def kept_statistics(run: Run, start: Bundle, dataset: EpisodeDataset) -> dict[str, Stats]:
    """The statistics of a bundle, as wide as the data in columns that did not move in the bundle's.

    A bundle has learned nothing of a column at rest, and its scale is a floor: by that scale, what moves there now
    would be many times as large as the other columns, in the loss and in the action tokens.

    Args:
        run: settled.
        start: the bundle.
        dataset: what it is trained on further.
    """
    of = processing_of(run, start)
    kept = {'state': start.processor.state_stats, 'actions': start.processor.action_stats}
    if not start.processor.floored:
        return kept
    data = compute_stats(dataset)
    for part, how in (('state', of.state_normalisation or of.normalisation), ('actions', of.normalisation)):
        resting, still = (set(scaling_of(each[part], how, of.rules).floored) for each in (kept, data))
        if resting - still:
            kept[part] = with_moving(kept[part], data[part], resting - still)
    return kept


def moving_since(kept: Mapping[str, Stats], start: Bundle) -> list[str]:
    """Columns whose statistics `kept_statistics` did not leave as they were."""
    pairs = ((kept['state'], start.processor.state_stats), (kept['actions'], start.processor.action_stats))
    found = [
        name
        for new, old in pairs
        for name, here, there in zip(new.names, new.std.tolist(), old.std.tolist(), strict=True)
        if here != there
    ]
    return list(dict.fromkeys(found))


def changes(
    run: Run, start: Bundle, config: ModelConfig, stats: Mapping[str, Stats], tokens: bool, codec: bool
) -> tuple[str, ...]:
    """What a settled run does otherwise than the bundle it starts from, one sentence each.

    Args:
        run: settled.
        start: the bundle.
        config: of the model that is trained.
        stats: of the run's robot.
        tokens: whether the vocabulary is another one.
        codec: whether the action codec is another one.
    """
    found = [f'statistics are {"those of the data" if run.stats == REFIT else run.stats}'] if run.stats != KEEP else []
    if run.stats == KEEP and (moving := moving_since(stats, start)):
        found.append(f'statistics are as wide as the data where the old ones hardly move: {", ".join(moving)}')
    found += ['the vocabulary is fitted anew'] if tokens else []
    found += ['the action codec is fitted anew'] if codec else []
    ours, theirs = processing_of(run, start), start.processor.processing
    found += _differences('processing', theirs.to_dict(), ours.to_dict())
    found += _differences('model', start.config.to_dict(), config.to_dict())
    delays = [stage.max_delay for stage in run.stages if stage.actions + stage.starts > 0]
    if delays and delays[-1] != start.serving.max_delay:
        found.append(f'serving.max_delay is {delays[-1]}; it was {start.serving.max_delay}')
    return tuple(found)


def start_weights(config: ModelConfig, start: Bundle, seed: int, without: Sequence[str] = ()) -> tuple[KiVla, Taken]:
    """A model with the weights of a bundle where name and shape are the same, and fresh ones elsewhere, in float32.

    Args:
        config: of the model.
        start: the bundle.
        seed: of the fresh ones.
        without: how the names of weights begin that are fresh whatever their shape.

    Raises:
        TrainingError: no weight fits.
    """
    with torch.device('meta'):
        model = KiVla(config)
    wanted, found = model.state_dict(), load_file(str(start.weights))
    barred = tuple(without)
    taken = [
        name
        for name, value in wanted.items()
        if name in found and found[name].shape == value.shape and not name.startswith(barred or ('\0',))
    ]
    if not taken:
        raise TrainingError(
            f'start: no weight of {start.folder} has the name and shape of one of this model; take its preset.'
        )
    fresh = [name for name in wanted if name not in set(taken)]
    left = [name for name in found if name not in set(taken)]
    state = {name: found.pop(name).to(torch.float32) for name in taken}
    model.load_state_dict({**state, **{name: torch.empty(wanted[name].shape) for name in fresh}}, assign=True)
    initialise(model, torch.Generator().manual_seed(seed), only=fresh)
    numbers = sum(value.numel() for value in state.values())
    return model.train().requires_grad_(True), Taken(tuple(taken), tuple(fresh), tuple(left), numbers)


def _stats_choice(start: Bundle | None, contract: Contract) -> str:
    return KEEP if start is not None and not start.contract.mismatches(contract) else REFIT


def _normalisation(kept: Processing | None, stats: str) -> str:
    """The bundle's where its statistics stay; data of one's own are never left as they are."""
    if kept is None or (kept.normalisation == 'identity' and stats != KEEP):
        return 'quantile'
    return kept.normalisation


def _differences(what: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        f'{what}.{name} is {value}; it was {before.get(name)}'
        for name, value in after.items()
        if before.get(name) != value and name != 'name'
    ]


def _short(names: Sequence[str]) -> str:
    """Names, whole modules in a word."""
    groups: dict[str, int] = {}
    for name in names:
        part = '.'.join(name.split('.')[:2]) if name.count('.') > 1 else name
        groups[part] = groups.get(part, 0) + 1
    told = [name if count == 1 else f'{name}.* ({count})' for name, count in groups.items()]
    return ', '.join(told[:SHOWN]) + (f' and {len(told) - SHOWN} more' if len(told) > SHOWN else '')
