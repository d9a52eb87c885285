"""A whole run: data -> policy -> stages -> bundle. What is finished is not done again, so it can be started again.

OUT/config.yaml  origin.json  policy.json     what it is, where it comes from, what was measured on the data
    policy/                                   a bundle without weights: with those of a checkpoint it is one
    parts/                                    statistics, tokenizer and FAST that its weights are trained with
    STAGE/metrics.jsonl  curves.png  tensorboard/  checkpoints/
    bundle/                                   what `ki up`, `ki eval` and `ki export` take
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ki_bags.problems import Problems
from ki_robot.contract.contract import load_contract
from ki_vla.model.config import ModelConfig
from ki_vla.model.kivla import KiVla
from ki_vla.objective.recipes import recipe
from ki_vla.policy.bundle import Bundle
from ki_vla.policy.processor import Processor
from training.doctor.trim import kept_steps
from training.errors import TrainingError
from training.fit.fitted_artifacts import ARTIFACTS, FittedArtifacts, load_artifacts, save_artifacts
from training.fit.initial_policy import Beginning, begin
from training.index.index import Index
from training.index.recordings import open_recordings
from training.samples.collator import Collator, Packet, misfit
from training.samples.dataset import KEPT_OUTCOMES, EpisodeDataset, split_episodes
from training.samples.mixture import Draw, Part
from training.samples.vlm_data import VlmDataset
from training.train.checkpoint import check_fingerprint, checkpoints, read_state
from training.train.config import Data, Embodiment, Run, Stage
from training.train.distributed import ProcessGroup, close_world, open_world, wait_for_all
from training.train.run_report import origin, write_json
from training.train.ship import ORIGIN, Shipment, last_checkpoint, save_policy, weights_of
from training.train.tracking import check_tracking
from training.train.trainer import Tell, Trainer

BUNDLE = 'bundle'
HELD_BATCH = 32
DIGITS = 16  # of the hash of a recording, in a bundle


@dataclass(frozen=True)
class Sources:
    """Everything that a run draws from, and what it holds out; `others`: other robots' recordings, with weights."""

    index: Index
    train: EpisodeDataset
    others: tuple[tuple[EpisodeDataset, float], ...]
    held: EpisodeDataset | None
    starts: EpisodeDataset | None
    vlm: VlmDataset | None
    vlm_held: VlmDataset | None
    corrections: EpisodeDataset | None = None
    correction_weight: float = 1.0

    def decode_for(self, processor: Processor, others: Mapping[str, Processor]) -> None:
        """Pictures are decoded as the policy says from now on; `others` are the processors of the other robots."""
        for own in (self.train, self.corrections, self.held, self.starts):
            if own is not None:
                own.picture_size = processor.picture_size
        for other, _ in self.others:
            other.picture_size = others[other.contract.name].picture_size

    @property
    def problems(self) -> Problems:
        """What of them cannot be used, as far as it has shown: pictures do not decode when they are drawn."""
        found = Problems(self.index.problems)
        for other, _ in self.others:
            found.extend([*other.index.problems, *other.problems])
        for source in (self.train, self.corrections, self.held, self.starts, self.vlm, self.vlm_held):
            found.extend(source.problems if source is not None else ())
        return found


def train(run: Run, tell: Tell | None = None) -> Path | None:
    """Trains every stage and writes the bundle; None when it was asked to stop (call again to go on).

    Raises:
        TrainingError, VlaError: data, configuration or disk do not let it.
    """
    tell = tell or (lambda kind, values: None)
    check_tracking(run)
    world = open_world(run.device)
    try:
        sources = open_sources(run, world)
        vlm = [sources.vlm] if sources.vlm is not None else []
        kept = _kept_artifacts(run)
        beginning = begin(run, sources.train, vlm, kept, [other for other, _ in sources.others])
        run = beginning.run
        sources.decode_for(beginning.processor, beginning.others)
        for words in (sources.vlm, sources.vlm_held):
            if words is not None:  # now, and not in the middle of the night
                words.drop(partial(misfit, beginning.processor))
        _check_labels(beginning.processor.config, sources)
        _check_served(run, beginning.processor.config)
        if world.first:
            _describe(run, sources, beginning, fresh=kept is None)
        tell('begin', _facts(run, sources, beginning))
        before = sources.problems
        tell('problems', {'problems': before})
        trained = _train_stages(run, sources, beginning, world, tell)
        tell('problems', {'problems': sources.problems.since(before)})
        if trained is None:
            return None
        bundle = Path(run.out) / BUNDLE
        if world.first:
            shipment = Shipment(run, run.stages[-1], beginning.processor, data_origin(sources), beginning.taken)
            fresh = bool(trained) or not shipment.is_in(bundle)
            if fresh:
                shipment.write(bundle)
            tell('bundle', {'path': str(bundle), 'written': fresh})
        wait_for_all(world)
        return bundle
    finally:
        close_world(world)


def _train_stages(run: Run, sources: Sources, beginning: Beginning, world: ProcessGroup, tell: Tell) -> int | None:
    """How many stages were trained, the others being done already; None when it was asked to stop."""
    model: KiVla | None = beginning.model
    processor, trained = beginning.processor, 0
    for number, stage in enumerate(run.stages):
        folder = Path(run.out) / stage.name
        if model is None:
            model = weights_of(last_checkpoint(run, run.stages[number - 1]), processor.config)
        held = held_packets(run, stage, processor, sources)
        tell('stage', {'name': stage.name, 'steps': stage.steps})
        trainer = Trainer(
            run, stage, model, processor, _parts(stage, sources), held, folder, world, sources.index.hash, tell,
            beginning.others,
        )  # fmt: skip
        if _is_done(trainer):
            tell('stage_done', {'name': stage.name})
        elif trainer.fit():
            trained += 1
        else:
            return None
        model = None
        del trainer
    return trained


def open_sources(run: Run, world: ProcessGroup | None = None) -> Sources:
    """Indexes what is not indexed, and splits.

    Raises:
        TrainingError: no data, or nothing usable on one side of the split.
    """
    world = world or ProcessGroup()
    indexes = _indexes(run) if world.first else None
    wait_for_all(world)
    index, *further = indexes or _indexes(run)  # the first process has made them, the others find them made
    numbers, held = split_episodes(index, run.data.validation, run.data.split_seed, run.data.outcomes)
    kept = kept_steps(Path(run.data.trim), index) if run.data.trim else None
    numbers, held = ([each for each in side if kept is None or each in kept] for side in (numbers, held))
    common: dict[str, Any] = {'outcomes': run.data.outcomes, 'resize': False}
    ours = {**common, 'kept': kept}
    horizon = dict(run.model).get('horizon')
    if not numbers:
        raise TrainingError(
            f'{index.folder} holds no episode with outcome {" or ".join(run.data.outcomes)} (data.outcomes) '
            'to train on; see `ki data show`.'
        )
    corrections, asked = None, run.data.interventions
    if asked.only or asked.weight > 1:
        corrections = EpisodeDataset(index, horizon, episodes=numbers, stride=run.data.stride, human=True, **ours)
    if asked.only and corrections is not None:
        train_data, corrections = corrections, None
    else:
        train_data = EpisodeDataset(index, horizon, episodes=numbers, stride=run.data.stride, **ours)
    if asked.only:  # what a failing policy did is no measure of one that learns from who corrected it
        held = [number for number in held if index.episodes[number][1].human]
    held_data = EpisodeDataset(index, horizon, episodes=held, human=asked.only, **ours) if held else None
    starts = None
    if any(stage.starts for stage in run.stages):
        starts = EpisodeDataset(index, horizon, episodes=numbers, first=run.data.start_steps, **ours)
    others = [EpisodeDataset(each, horizon, stride=run.data.stride, **common) for each in further]
    vlm = VlmDataset(run.data.vlm) if run.data.vlm else None
    vlm_held = VlmDataset(run.data.vlm_held) if run.data.vlm_held else None
    weighted = tuple(zip(others, (each.weight for each in run.embodiments), strict=True))
    return Sources(index, train_data, weighted, held_data, starts, vlm, vlm_held, corrections, asked.weight)


def unseen(bundle: Bundle, recordings: Path, every: bool = False) -> tuple[EpisodeDataset, str]:
    """Episodes to evaluate a bundle on, and in words which: those it has not seen, where these are its own data.

    Args:
        bundle: the policy.
        recordings: bags, arrays, or an index of either.
        every: also the episodes that it was trained on.

    Raises:
        TrainingError: nothing there, recordings of another robot, or nothing that it has not seen.
    """
    index = open_recordings(recordings, bundle.contract)
    if index.contract.action_names != bundle.contract.action_names:
        raise TrainingError(
            f'{recordings} is of {index.contract.name} with other action columns than {bundle.policy_id} '
            f'({bundle.contract.name}) has; evaluate on recordings of its own robot.'
        )
    data, ours = _trained_on(bundle, index)
    outcomes = KEPT_OUTCOMES if data is None else data.outcomes
    numbers = [number for number, (_, about) in enumerate(index.episodes) if about.outcome in outcomes]
    note = f'all {len(numbers)} episodes of {recordings}'
    if data is None:
        note += '; nothing says whether it was trained on some of them'
    elif ours:
        seen, held = split_episodes(index, data.validation, data.split_seed, outcomes, ours)
        fresh = sorted(set(numbers).difference(seen))
        if every:
            note += f', {len(seen)} of which it was trained on'
        elif fresh:
            numbers, new = fresh, len(fresh) - len(held)
            note = f'{len(held)} held-out {f"and {new} new " if new else ""}episodes of {recordings}'
        else:
            raise TrainingError(f'{recordings}: the policy was trained on all of it; give other recordings, or --all.')
    size = bundle.processor.picture_size
    return EpisodeDataset(index, bundle.config.horizon, outcomes, numbers, resize=False, picture_size=size), note


def _trained_on(bundle: Bundle, index: Index) -> tuple[Data | None, set[str]]:
    """How a bundle's run chose from its data, and the hashes of those recordings of an index that it chose from."""
    about = bundle.provenance
    ours = {entry.sha256 for entry in index.entries}
    if 'recordings' in about:
        trained_on = set(about['recordings'])
        ours = {digest for digest in ours if digest[:DIGITS] in trained_on}
    elif about.get('data_hash') != index.hash:
        return None, set()
    return Run.parse(about['run']).data, ours


def unseen_questions(bundle: Bundle, words: Sequence[Path] = ()) -> tuple[VlmDataset | None, str]:
    """Questions to ask a bundle, and in words which: those named, else those that its run held out.

    Args:
        bundle: the policy.
        words: JSONL files, tar shards, or folders of them.

    Raises:
        TrainingError: a named file is not there, or holds no usable sample.
    """
    data = Run.parse(bundle.provenance['run']).data if 'run' in bundle.provenance else None
    if not words:
        held = [] if data is None else list(data.vlm_held)
        if not held or not all(Path(each).exists() for each in held):
            return None, f'the questions that its run held out are not here: {", ".join(held)}' if held else ''
        return VlmDataset(held), f'held-out questions of {", ".join(held)}'
    known = set() if data is None else {Path(each).resolve() for each in data.vlm}
    trained = [str(each) for each in words if each.resolve() in known]
    note = f'questions of {", ".join(map(str, words))}'
    return VlmDataset(words), f'{note}, which it was trained on' if trained else note


def held_packets(run: Run, stage: Stage, processor: Processor, sources: Sources) -> list[Packet]:
    """The same few batches for every validation of a stage: held-out episodes, and held-out questions."""
    collator = Collator(processor, run.seed, 1 if recipe(stage.recipe).targets_see_actions else stage.draws)
    batch = min(HELD_BATCH, stage.batch)
    most = batch * run.validate_batches
    drawn: list[Draw] = []
    if sources.held is not None and stage.actions + stage.starts:
        drawn += spread('held', sources.held, most)
    if sources.vlm_held is not None and stage.vlm:
        drawn += spread('vlm_held', asked_in(stage, sources.vlm_held), most)
    groups: dict[str, list[Draw]] = {}
    for draw in drawn:  # one task or kind a packet, so that each has losses of its own
        groups.setdefault(group_of(draw.sample), []).append(draw)
    return [
        replace(collator(of[first : first + batch]), group=group)
        for group, of in groups.items()
        for first in range(0, len(of), batch)
    ]


def asked_in(stage: Stage, words: VlmDataset) -> VlmDataset:
    """The questions of a stage: those of its kinds.

    Raises:
        TrainingError: there are none.
    """
    return words.only(stage.kinds) if stage.kinds else words


def group_of(sample: Any) -> str:
    """What the losses of a sample are told apart by: its kind of question, or its task where the data name one."""
    return str(getattr(sample, 'kind', '') or getattr(sample, 'task', ''))


def spread(name: str, source: Any, most: int) -> list[Draw]:
    """Up to `most` samples of a source, evenly spaced."""
    count = min(most, len(source))
    places = [place * len(source) // count for place in range(count)]
    return [Draw(name, place, source[place], number) for number, place in enumerate(places)]


def _indexes(run: Run) -> list[Index]:
    """Of the run's robot, and of the others in their order."""
    return [_index(run.robot, run.data), *(_index(each.robot, each) for each in run.embodiments)]


def _index(robot: str, data: Data | Embodiment) -> Index:
    if data.arrays is not None:
        from training.index.simulator_arrays import index_arrays

        source = Path(data.arrays)
        return index_arrays(source, load_contract(robot), source / 'index')
    assert data.bags is not None
    return open_recordings(Path(data.bags), load_contract(robot), data.task)


def _parts(stage: Stage, sources: Sources) -> Sequence[Part]:
    parts = []
    if stage.actions:
        corrected = correction_share(sources)
        parts.append(Part('actions', sources.train, stage.actions * (1.0 - corrected)))
        if sources.corrections is not None:
            parts.append(Part('corrections', sources.corrections, stage.actions * corrected))
        for other, weight in sources.others:
            parts.append(Part(f'actions of {other.contract.name}', other, stage.actions * weight))
    if stage.starts:
        assert sources.starts is not None
        parts.append(Part('starts', sources.starts, stage.starts))
    if stage.vlm:
        if sources.vlm is None:
            raise TrainingError(f'stage {stage.name}: draws vlm samples, but data.vlm names no files.')
        parts.append(Part('vlm', asked_in(stage, sources.vlm), stage.vlm))
    return parts


def correction_share(sources: Sources) -> float:
    """Share of the draws that is taken from corrections besides, so that each of them counts as its weight says."""
    if sources.corrections is None:
        return 0.0
    extra = (sources.correction_weight - 1.0) * len(sources.corrections)
    return extra / (len(sources.train) + extra)


def _kept_artifacts(run: Run) -> FittedArtifacts | None:
    """What the weights of the run were trained with; None where there are none yet, and data or settings may change."""
    folder = Path(run.out) / ARTIFACTS
    begun = any(checkpoints(Path(run.out) / stage.name / 'checkpoints') for stage in run.stages)
    return load_artifacts(folder) if begun and folder.is_dir() else None


def _is_done(trainer: Trainer) -> bool:
    found = checkpoints(trainer.store)
    if not found:
        return False
    state = read_state(found[-1])
    check_fingerprint(found[-1], state, trainer.fingerprint)
    return bool(state['step'] >= trainer.stage.steps)


def data_origin(sources: Sources) -> dict[str, Any]:
    """Which data a policy is of, for its bundle."""
    return {
        **origin(sources.index.hash),
        'recordings': sorted(entry.sha256[:DIGITS] for entry in sources.index.entries if entry.episodes),
        'others': {other.contract.name: other.index.hash for other, _ in sources.others},
    }


def _check_served(run: Run, config: ModelConfig) -> None:
    """Refuses a recommendation that its chunks do not have the steps for: now, and not once it is trained.

    Raises:
        TrainingError: names the field, its value and the most that it may be.
    """
    steps, most = run.served.execute_steps, max(1, config.horizon - 1)
    if steps is not None and steps > most:
        raise TrainingError(
            f'served.execute_steps is {steps}; a chunk has {config.horizon} steps, write at most {most}.'
        )


def _check_labels(config: ModelConfig, sources: Sources) -> None:
    """Refuses data that call things by words that the model's training heads do not have, or by none of them.

    Raises:
        TrainingError: names the label, the words and what to write.
    """
    if config.dense is None:
        return
    found: dict[str, set[str]] = {}
    for source in (sources.train, sources.held, sources.vlm, sources.vlm_held):
        for label, words in ({} if source is None else source.thing_words).items():
            found.setdefault(label, set()).update(words)
    for label, known in config.dense.labels.items():
        if label not in found:
            raise TrainingError(
                f'model.dense.labels has {label}, and no data say it of things ({", ".join(found) or "no label"} they '
                'do); leave it out, or add data with things.'
            )
        strange = sorted(found[label] - set(known))
        if strange:
            raise TrainingError(
                f'model.dense.labels.{label} is {", ".join(known)}; the data also say {", ".join(strange)}: add it.'
            )


def _facts(run: Run, sources: Sources, beginning: Beginning) -> dict[str, Any]:
    return {
        'episodes': len(sources.train.episode_numbers),
        'samples': len(sources.train),
        'held_episodes': 0 if sources.held is None else len(sources.held.episode_numbers),
        'others': {other.contract.name: len(other) for other, _ in sources.others},
        'vlm': 0 if sources.vlm is None else len(sources.vlm),
        'parameters': sum(p.numel() for p in beginning.model.parameters()),
        'fast': None if beginning.artifacts.fast is None else beginning.artifacts.fast.to_dict(),
        'max_prompt': beginning.processor.config.max_prompt,
        'max_targets': beginning.processor.config.max_targets,
        'floored': list(beginning.processor.floored),
        'start': None if beginning.taken is None else beginning.taken.to_dict(),
        'start_lines': [] if beginning.taken is None else [f'from {run.start}:', *beginning.taken.lines()],
    }


def _describe(run: Run, sources: Sources, beginning: Beginning, fresh: bool) -> None:
    out = Path(run.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / 'config.yaml').write_text(yaml.safe_dump(run.to_dict(), sort_keys=False), encoding='utf-8')
        write_json(out / ORIGIN, data_origin(sources))
        write_json(out / 'policy.json', _facts(run, sources, beginning))
        save_policy(out, beginning.processor, beginning.taken)
        if fresh:
            save_artifacts(out / ARTIFACTS, beginning.artifacts)
    except OSError as error:
        raise TrainingError(f'{out} cannot be written: {error}.') from error
