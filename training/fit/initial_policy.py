"""What a policy is made of before its first step: statistics, tokenizer and FAST from the data, a configuration to fit.

A bundle to start from brings its tokenizer, codec and weights along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki_common.errors import KiError
from ki_robot.contract.contract import Contract
from ki_robot.transforms import Stats, load_stats, scaling_of
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.objective.recipes import recipe
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.processor import Processor
from ki_vla.policy.subtasks import MAX_SUBTASK_TOKENS
from ki_vla.tokens.actions import ActionCodec
from ki_vla.tokens.naive import NaiveCodec
from ki_vla.tokens.state import state_text
from ki_vla.tokens.tokenizer import TextTokenizer, load_gemma, load_tokenizer, train_tokenizer
from training.errors import TrainingError
from training.fit.fast_fit import FastReport, fit_fast
from training.fit.fitted_artifacts import FittedArtifacts
from training.fit.start_from import KEEP, REFIT, Taken, changes, kept_statistics, processing_of, settled, start_weights
from training.fit.stats import compute_stats
from training.samples.collator import requantised
from training.samples.dataset import EpisodeDataset
from training.samples.vlm_data import VlmDataset
from training.train.config import Run, Tokens

PROMPTS = 400  # prompts with real states that the tokenizer is trained on and measured with
TEXTS = 20_000
Robot = tuple[EpisodeDataset, dict[str, Stats]]


@dataclass(frozen=True)
class Beginning:
    """What a run begins with.

    Attributes:
        run: with every choice made.
        processor: of its robot.
        model: with its first weights.
        artifacts: what the processor was made of.
        others: processors of the other robots, by name.
        start: the bundle that it starts from.
        taken: what became of that bundle's weights.
    """

    run: Run
    processor: Processor
    model: KiVla
    artifacts: FittedArtifacts
    others: Mapping[str, Processor] = field(default_factory=dict)
    start: Bundle | None = None
    taken: Taken | None = None


def begin(
    run: Run,
    dataset: EpisodeDataset,
    vlm: Sequence[VlmDataset],
    kept: FittedArtifacts | None = None,
    others: Sequence[EpisodeDataset] = (),
) -> Beginning:
    """Puts a policy together for a run.

    Args:
        run: the configuration.
        dataset: the training split.
        vlm: pictures with words, for the tokenizer.
        kept: what the run was begun with, in place of what would be fitted on the data now.
        others: recordings of other robots that train the same weights.

    Raises:
        TrainingError: robots that do not go together, stages that need different models, or statistics of another
            robot.
        VlaError: parts that do not fit each other.
    """
    start = None if run.start is None else load_bundle(run.start)
    robots_data = (dataset, *others)
    shrunk = [str(each.index.folder) for each in robots_data if each.index.options.get('store') == 'model']
    run = settled(run, start, dataset.contract, shrunk[0] if shrunk else '')
    stats = _stats(run, dataset, start, kept)
    further = _further_stats(others, kept, dataset.contract, stats)
    config = _config(run, [each.contract for each in (dataset, *others)], start)
    robots = [(dataset, stats), *((each, further[each.contract.name]) for each in others)]
    tokenizer = _tokenizer(run, robots, vlm, config, start, kept)
    codec, report = _codec(run, dataset, stats, config, tokenizer, start, kept)
    artifacts = FittedArtifacts(stats, tokenizer, codec, report, further)
    new_tokens = start is None or run.tokens is not None
    new_codec = start is None or codec is not start.processor.codec
    if new_tokens or new_codec:
        config = _with_room(run, config, robots, artifacts)
    processing = processing_of(run, start)
    processor, *more = (
        Processor(each.contract, of['state'], of['actions'], tokenizer, _codec_of(codec, each), config, processing)
        for each, of in robots
    )
    by_name = {each.contract.name: each for each in more}
    if start is None:
        model = initialise(KiVla(config), torch.Generator().manual_seed(run.seed))
        return Beginning(run, processor, model, artifacts, by_name)
    # Rows of an embedding mean words: with other words they mean nothing.
    model, taken = start_weights(config, start, run.seed, without=('embed.',) if new_tokens else ())
    taken = replace(taken, changes=changes(run, start, config, stats, new_tokens, new_codec))
    return Beginning(run, processor, model, artifacts, by_name, start, taken)


def _stats(run: Run, dataset: EpisodeDataset, start: Bundle | None, kept: FittedArtifacts | None) -> dict[str, Stats]:
    """Statistics of the run's robot: of the bundle, of a file, or of the data."""
    if run.stats == KEEP:
        assert start is not None  # `settled` has seen to it
        return kept_statistics(run, start, dataset) if kept is None else kept.stats
    if run.stats not in (None, REFIT):
        return stats_file(run.stats, dataset)
    return compute_stats(dataset) if kept is None else kept.stats


def stats_file(path: str | Path, dataset: EpisodeDataset) -> dict[str, Stats]:
    """Statistics from a file (`ki data stats`), refused when they are of other columns.

    Raises:
        TrainingError: it cannot be read, or is of another robot.
    """
    try:
        stats = load_stats(Path(path))
        stats['state'].check(dataset.contract.state_names, 'state columns')
        stats['actions'].check(dataset.contract.action_names, 'action columns')
    except KeyError as error:
        raise TrainingError(f'{path} holds no {error}; write it with `ki data stats`.') from error
    except KiError as error:
        raise TrainingError(
            f'{path}: these are statistics of another robot than {dataset.contract.name}: {error}'
        ) from error
    return stats


def _further_stats(
    others: Sequence[EpisodeDataset], kept: FittedArtifacts | None, own: Contract, stats: dict[str, Stats]
) -> dict[str, dict[str, Stats]]:
    """Statistics of the other robots; those of a run that goes on must be the robots that it was begun with.

    Further recordings of the run's own robot have its statistics: one policy acts on both.
    """
    for each in others:
        if each.contract.name == own.name and each.contract.hash != own.hash:
            raise TrainingError(
                f'embodiments: {each.index.folder} is of another {own.name} than that of this run: the contracts '
                'differ. Index it again, or give the other robot a name of its own.'
            )
    if kept is None:
        return {each.contract.name: stats if each.contract.name == own.name else compute_stats(each) for each in others}
    names, known = {each.contract.name for each in others}, set(kept.others)
    if names != known:
        raise TrainingError(
            f'embodiments: the run was begun with {", ".join(sorted(known)) or "none"} and now has '
            f'{", ".join(sorted(names)) or "none"}; name the same ones, or begin in another folder (out).'
        )
    return dict(kept.others)


def _codec_of(codec: ActionCodec | None, dataset: EpisodeDataset) -> ActionCodec | None:
    """The codec for the columns of one robot: its tokens are strings of coefficients, of however many columns."""
    return None if codec is None else replace(codec, columns=len(dataset.contract.actions))


def _config(run: Run, contracts: Sequence[Contract], start: Bundle | None) -> ModelConfig:
    """The preset with the run's changes, columns for the widest robot, and the structure that every recipe needs."""
    names = [contract.name for contract in contracts[1:]]
    if len(set(names)) < len(names):
        raise TrainingError(f'embodiments: the robots are {", ".join(names)}; each may be there once.')
    horizons = {contract.name: contract.horizon for contract in contracts}
    if len(set(horizons.values())) > 1 and 'horizon' not in run.model:
        raise TrainingError(f'embodiments: chunks must have one length; the horizons are {horizons}.')
    first = recipe(run.stages[0].recipe)  # what the run changes may need the structure of its recipe
    if start is not None and run.preset is None:
        there = start.config
        if there.state_repr == 'suffix' and first.targets != 'none':
            there = there.replace(state_repr='text')  # pi0's way would hide the state from tokens
        config = first.configure(there, {**_wide_enough(there, contracts), **run.model})
    else:
        assert run.preset is not None  # of a settled run
        least = 32 if run.preset == 'full' else 0
        sizes = {
            'horizon': contracts[0].horizon,
            'action_dim': max(least, *(len(contract.actions) for contract in contracts)),
            'state_dim': max(least, *(len(contract.state) for contract in contracts)),
            'views': max(len(contract.cameras) for contract in contracts),
        }
        config = first.configure(preset(run.preset, **sizes), run.model)
    wanted, *others = (recipe(stage.recipe).configure(config) for stage in run.stages)
    if any(other != wanted for other in others):
        recipes = ', '.join(stage.recipe for stage in run.stages)
        raise TrainingError(f'stages: the recipes {recipes} need models of different structure; train them apart.')
    if start is not None and run.tokens is None:
        wanted = wanted.replace(vocab_size=start.config.vocab_size)
    return wanted


def _wide_enough(config: ModelConfig, contracts: Sequence[Contract]) -> dict[str, int]:
    """The sizes of a bundle's model, raised where these robots need more."""
    return {
        'horizon': contracts[0].horizon,
        'action_dim': max(config.action_dim, *(len(contract.actions) for contract in contracts)),
        'state_dim': max(config.state_dim, *(len(contract.state) for contract in contracts)),
        'views': max(config.views, *(len(contract.cameras) for contract in contracts)),
    }


def _tokenizer(
    run: Run,
    robots: Sequence[Robot],
    vlm: Sequence[VlmDataset],
    config: ModelConfig,
    start: Bundle | None,
    kept: FittedArtifacts | None,
) -> TextTokenizer:
    if run.tokens is None:
        assert start is not None  # `settled` has seen to it
        return start.processor.tokenizer
    if run.tokens.tokenizer is not None:
        path = Path(run.tokens.tokenizer)
        return load_tokenizer(path) if (path / 'vocabulary.json').is_file() else load_gemma(path)
    if kept is not None:
        return kept.tokenizer
    texts = [text for robot in robots for text in _prompts(run, *robot)]
    for source in vlm:
        for question, answer in source.texts(TEXTS):
            texts += [requantised(f'{question}\n', 1), requantised(answer, 1)]
    plain = [text.replace('<loc0000>', '') for text in texts]  # box tokens are rows of their own
    tokens = run.tokens
    return train_tokenizer(
        plain,
        size=config.vocab_size,
        text_size=tokens.text,
        loc_bins=tokens.boxes,
        action_size=tokens.actions,
        split_digits=tokens.split_digits,
    )


def _prompts(run: Run, dataset: EpisodeDataset, stats: dict[str, Stats], with_state: bool = True) -> list[str]:
    """Prompts and subtasks as they will be, spread over the data."""
    scaling = scaling_of(stats['state'], run.normalisation or 'quantile')
    starts, texts = dataset.starts(), []
    for place in np.unique(np.linspace(0, len(starts) - 1, PROMPTS).astype(int)):
        number, step = (int(each) for each in starts[place])
        arrays, said = dataset.arrays(number), dataset.index.episodes[number][1].texts
        state = f', State: {state_text(scaling.apply(arrays["state"][step]))}' if with_state else ''
        texts.append(f'Task: {said[int(arrays["text"][step])]}{state};\nAction: ')
        texts.append(requantised(f'{said[int(arrays["subtask"][step])]}\n', 1))
    return texts


def _codec(
    run: Run,
    dataset: EpisodeDataset,
    stats: dict[str, Stats],
    config: ModelConfig,
    tokenizer: TextTokenizer,
    start: Bundle | None,
    kept: FittedArtifacts | None,
) -> tuple[ActionCodec | None, FastReport | None]:
    """The codec that the stages' recipes name; where none of them does, FAST, so that the bundle can still say it."""
    wanted = {recipe(stage.recipe).targets for stage in run.stages} - {'none'}
    if len(wanted) > 1:
        raise TrainingError(f'stages: action tokens {", ".join(sorted(wanted))} in one run; a policy has one kind.')
    kind = wanted.pop() if wanted else 'none'
    if start is not None and run.tokens is None:
        there = start.processor.codec
        if there is not None and kind in ('none', kind_of(there)) and _fits(there, config, dataset):
            return there, None
    if kind == 'none':
        return None, None
    if kind.startswith('naive'):
        bins = min(256, tokenizer.vocabulary.action_size)
        return NaiveCodec(config.horizon, len(dataset.contract.actions), bins, 5 if kind.endswith('5') else 1), None
    if kept is not None:
        return kept.codec, kept.fast
    tokens, how = run.tokens or Tokens(), processing_of(run, start)
    size = min(tokens.actions, tokenizer.vocabulary.action_size)
    return fit_fast(dataset, stats, size, tokens.scale, normalisation=how.normalisation, rules=how.rules, seed=run.seed)


def kind_of(codec: ActionCodec) -> str:
    """The name that recipes have for a codec (`Recipe.targets`)."""
    if isinstance(codec, NaiveCodec):
        return 'naive' if codec.stride == 1 else f'naive_stride{codec.stride}'
    return 'fast'


def _fits(codec: ActionCodec, config: ModelConfig, dataset: EpisodeDataset) -> bool:
    return codec.horizon == config.horizon and codec.columns == len(dataset.contract.actions)


def _with_room(run: Run, config: ModelConfig, robots: Sequence[Robot], artifacts: FittedArtifacts) -> ModelConfig:
    """Budgets of prompt and target tokens that the data fit in, where the run sets none; they cost no weights."""
    changes: dict[str, Any] = {}
    if 'max_prompt' not in run.model:
        with_state = config.state_repr == 'text'
        texts = [text for robot in robots for text in _prompts(run, *robot, with_state=with_state)]
        longest = max(len(artifacts.tokenizer.encode(text)) for text in texts)
        longest += MAX_SUBTASK_TOKENS if run.subtasks else 0
        changes['max_prompt'] = max(config.max_prompt, longest + longest // 4 + 8)
    if 'max_targets' not in run.model and artifacts.codec is not None:
        values, fast = artifacts.codec.values, artifacts.fast
        most = values if fast is None else min(2 * fast.tokens_max, values)
        # Tokens that were fitted on one robot say less of another each: as many as numbers, at the worst.
        most = max([most, *(config.horizon * len(each.contract.actions) for each, _ in robots[1:])])
        changes['max_targets'] = max(config.max_targets, most + 48)
    return config.replace(**changes)
