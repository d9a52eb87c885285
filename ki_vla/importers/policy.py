"""Import a foreign checkpoint as a bundle, and export a bundle in openpi's or lerobot's layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki_robot.contract.contract import Contract
from ki_robot.transforms import MIN_SPAN, ScalingRules, Stats
from ki_vla.errors import VlaError
from ki_vla.importers.checkpoint_metadata import CheckpointMetadata, read_metadata
from ki_vla.importers.lerobot import check_kind, export_lerobot, import_lerobot
from ki_vla.importers.lerobot_files import (
    ACTION,
    MODES,
    PADDED_TEXT,
    STATE,
    LerobotPolicy,
    check_widths,
    lerobot_stats,
    read_lerobot,
)
from ki_vla.importers.mapping import ImportReport
from ki_vla.importers.norm_stats import find_norm_stats, read_statistics, write_norm_stats
from ki_vla.importers.openpi import default_config, export_openpi, import_openpi, open_openpi
from ki_vla.importers.paligemma import import_paligemma
from ki_vla.importers.questions import (
    OPENPI_VIEWS,
    Answers,
    check_cameras,
    check_relative,
    horizon_of,
    state_in_prompt_of,
)
from ki_vla.importers.sources import CheckpointSource
from ki_vla.model.config import HEAD, ModelConfig, preset
from ki_vla.model.kivla import skeleton
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.policy.serving import Serving
from ki_vla.tokens.fast import load_public
from ki_vla.tokens.tokenizer import TextTokenizer, load_gemma
from ki_vla.tokens.vocabulary import gemma_vocabulary

IMPORTERS = {'paligemma': import_paligemma, 'openpi': import_openpi, 'lerobot': import_lerobot}
LAYOUTS = ('openpi', 'lerobot')
StatsSource = str | Path | tuple[Stats, Stats] | None


@dataclass(frozen=True)
class Imported:
    """A bundle that was made of a checkpoint.

    Attributes:
        bundle: the policy.
        report: what became of every tensor.
        said: how the checkpoint was understood, by subject: horizon, views, state, statistics, actions.
    """

    bundle: Bundle
    report: ImportReport
    said: dict[str, str]


@dataclass(frozen=True)
class _Understood:
    """What an import needs to know besides tensors."""

    config: ModelConfig
    processing: Processing
    stats: tuple[Stats, Stats]
    serving: Serving
    said: dict[str, str]


def import_policy(
    kind: str,
    source: str | Path | CheckpointSource,
    folder: str | Path,
    *,
    name: str,
    contract: Contract,
    stats: StatsSource = None,
    tokenizer: str | Path | TextTokenizer,
    fast: str | Path | None = None,
    answers: Answers | None = None,
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Imported:
    """Make a bundle of a foreign checkpoint; the weights are streamed straight into it.

    Args:
        kind: 'paligemma', 'openpi' or 'lerobot'.
        source: the checkpoint's folder or file, or what `sources.find_source` found.
        folder: the bundle to write.
        name: what to call the policy.
        contract: the robot it is for; its columns in the order the checkpoint was trained with.
        stats: openpi's norm_stats.json, the file of `ki data stats`, or state and action statistics; unless given,
            those that the checkpoint brings.
        tokenizer: a Gemma or PaliGemma tokenizer.json or its folder; or one that is loaded.
        fast: a folder in the layout of physical-intelligence/fast; without it the policy has no action tokens.
        answers: what the checkpoint does not say.
        config: the model; found from the checkpoint and the contract unless given.
        dtype: float32 or bfloat16.
        overwrite: replace a bundle that is there.

    Raises:
        VlaError: the kind is unknown, any tensor is unaccounted for, the checkpoint does not say what must be known and
            nobody answers, or cameras, columns, horizon or statistics are not the robot's.
    """
    if kind not in IMPORTERS:
        raise VlaError(f'{kind!r} is no kind of checkpoint; choose {", ".join(IMPORTERS)}.')
    found = source if isinstance(source, CheckpointSource) else CheckpointSource(Path(source), Path(source).name)
    understood = _understand(kind, found, contract, stats, answers or Answers(), config)
    config = understood.config
    provenance = {
        'imported_from': kind,
        **found.provenance(),
        'trained': _trained_parts(kind, config),
        **understood.said,
    }
    text = tokenizer if isinstance(tokenizer, TextTokenizer) else load_gemma(tokenizer)
    codec = None if fast is None else load_public(fast, horizon=config.horizon, columns=len(contract.actions))
    state, actions = understood.stats
    processor = Processor(contract, state, actions, text, codec, config, understood.processing)
    reports: list[ImportReport] = []

    def write(path: Path) -> None:
        reports.append(IMPORTERS[kind](found.folder, path, config=config, dtype=dtype))

    bundle = write_bundle(
        folder, name=name, weights=write, processor=processor, serving=understood.serving, provenance=provenance,
        overwrite=overwrite,
    )  # fmt: skip
    return Imported(bundle, reports[0], understood.said)


def export_policy(
    bundle: Bundle, folder: str | Path, layout: str, *, dtype: torch.dtype = torch.float32, any_vocabulary: bool = False
) -> Path:
    """Write a bundle's weights and statistics in a foreign layout.

    openpi gets model.safetensors, config.json and assets/ROBOT/norm_stats.json. lerobot gets its model.safetensors and
    the same norm_stats.json beside it; config.json and the processors are made with lerobot's own tools.

    Args:
        bundle: the policy.
        folder: where to write.
        layout: 'openpi' or 'lerobot'.
        dtype: float32 or bfloat16.
        any_vocabulary: allow a policy whose tokens are not PaliGemma's, which those programs would tokenise wrongly.

    Raises:
        VlaError: unknown layout, another vocabulary, or a structure that the layout does not know.
    """
    if layout not in LAYOUTS:
        raise VlaError(f'{layout!r} is no layout; choose {" or ".join(LAYOUTS)}.')
    if bundle.processor.tokenizer.vocabulary != gemma_vocabulary() and not any_vocabulary:
        raise VlaError(
            f'{bundle.policy_id} was trained with a tokenizer of its own, and {layout} would use that of PaliGemma: '
            'its prompts would mean nothing to the policy.'
        )
    folder = Path(folder)
    export = export_openpi if layout == 'openpi' else export_lerobot
    export(bundle.weights, bundle.config, folder, dtype=dtype)
    assets = folder / 'assets' / bundle.contract.name if layout == 'openpi' else folder
    write_norm_stats(assets / 'norm_stats.json', bundle.processor.state_stats, bundle.processor.action_stats)
    return folder


def _understand(
    kind: str,
    source: CheckpointSource,
    contract: Contract,
    stats: StatsSource,
    answers: Answers,
    config: ModelConfig | None,
) -> _Understood:
    """Everything but the tensors: from the checkpoint's files, its public name, and the answers."""
    if kind == 'paligemma':
        return _understand_paligemma(source, contract, stats, config)
    metadata = read_metadata(source.folder)
    config = config or default_config(open_openpi(source.folder))
    check_kind(metadata, config)
    if answers.public_name is None and source.known_name is not None:
        answers = replace(answers, public_name=source.known_name)
    policy = read_lerobot(metadata) if kind == 'lerobot' else None
    horizon, by = horizon_of(metadata, answers, contract)
    said = {'horizon': f'{horizon} steps ({by})', 'views': _views(policy, metadata, answers, contract)}
    config = config.replace(horizon=horizon, views=max(config.views, len(contract.cameras)))
    if policy is not None:
        check_widths(policy, contract)
        check_relative(policy.relative, contract, str(metadata.path), policy.action_names)
        config = config.replace(max_prompt=policy.said.get('tokenizer_max_length', config.max_prompt))
    elif answers.public is not None:
        check_relative(answers.public.relative, contract, f"openpi's configuration {answers.public_name}")
    said['actions'] = ', '.join(f'{column.name} {column.representation}' for column in contract.actions)
    config, columns, said['state'] = _state(config, metadata, policy, answers)
    chosen, rules, said['statistics'] = _statistics(source, policy, stats, answers, contract, config)
    processing = Processing(
        normalisation='quantile' if config.adaptive else 'zscore', rules=rules, state_text_columns=columns,
        state_text_lowest=-1,
    )  # fmt: skip
    if policy is not None:
        state_way, action_way = (MODES[policy.modes[feature]][0] for feature in (STATE, ACTION))
        processing = processing.replace(
            normalisation=action_way, state_normalisation=None if state_way == action_way else state_way
        )
    said |= _flat_columns(chosen, processing)
    return _Understood(config, processing, chosen, _serving(config, policy), said)


def _understand_paligemma(
    source: CheckpointSource, contract: Contract, stats: StatsSource, config: ModelConfig | None
) -> _Understood:
    """A backbone to train from: all else is this project's own."""
    if config is None:
        config = preset('full', horizon=contract.horizon)
        config = config.replace(views=max(config.views, len(contract.cameras)))
    if stats is None:
        raise VlaError(f'{source.named}: PaliGemma brings no statistics; give --stats, from `ki data stats`.')
    if not isinstance(stats, tuple):
        stats = read_statistics(stats, contract, quantiles=config.adaptive)[:2]
    said = {'note': 'the action expert is freshly initialised; train before use'}
    return _Understood(config, Processing(), stats, Serving.for_horizon(config.horizon), said)


def _views(policy: LerobotPolicy | None, metadata: CheckpointMetadata, answers: Answers, contract: Contract) -> str:
    """Which camera stands for which view."""
    if policy is not None and policy.cameras:
        return check_cameras(policy.cameras, answers.cameras, contract, str(metadata.path))
    where = metadata.path.parent if policy is None else metadata.path
    return check_cameras(tuple(OPENPI_VIEWS), answers.cameras, contract, str(where))


def _state(
    config: ModelConfig, metadata: CheckpointMetadata, policy: LerobotPolicy | None, answers: Answers
) -> tuple[ModelConfig, int, str]:
    """How the policy is shown the state: the model, how many numbers the prompt holds at least, and a line about it."""
    if not config.adaptive:
        return config, 0, 'as one token of the action expert (pi0)'
    shown, by = state_in_prompt_of(metadata, answers)
    if not shown:
        return config.replace(state_repr='none'), 0, f'not shown ({by})'
    if policy is None:
        return config, 0, f'as text in the prompt ({by})'
    padded = answers.pad_state
    if padded is None:
        padded = None if policy.unpadded_text is None else not policy.unpadded_text
    elif padded and policy.unpadded_text:
        raise VlaError(
            f'{metadata.path}: has use_relative_actions, so that lerobot 0.5.1 or later wrote it, and --pad-state is '
            'yes; only lerobot 0.4 filled the state up: write no, or leave it out.'
        )
    if padded is None:
        raise VlaError(
            f'{metadata.path}: does not say whether lerobot 0.4 trained the policy, which fills the state in the '
            f'prompt up to {PADDED_TEXT} numbers; write --pad-state yes if it did, or no for lerobot 0.5 and '
            'for the base models that openpi trained.'
        )
    return config, PADDED_TEXT if padded else 0, f'as text in the prompt ({by}{", 32 numbers" if padded else ""})'


def _statistics(
    source: CheckpointSource,
    policy: LerobotPolicy | None,
    stats: StatsSource,
    answers: Answers,
    contract: Contract,
    config: ModelConfig,
) -> tuple[tuple[Stats, Stats], ScalingRules, str]:
    """State and action statistics, whose rules they come with, and a line about them."""
    origin: ScalingRules = 'openpi' if policy is None else 'lerobot'
    if isinstance(stats, tuple):
        return stats, origin, 'as given'
    if stats is not None:
        state, actions, rules = read_statistics(stats, contract, quantiles=config.adaptive)
        return (state, actions), rules, f'{Path(stats)}, by the rules of {rules}'
    if policy is not None:
        brought = lerobot_stats(policy, contract)
        if brought is None:
            raise VlaError(
                f'{source.named}: its processors hold no statistics, as those of base models; give --stats: those of '
                '`ki data stats`, or the norm_stats.json of the training.'
            )
        ways = ', '.join(f'{feature} by {policy.modes[feature]}' for feature in (STATE, ACTION))
        return brought, 'lerobot', f"lerobot's processors ({ways})"
    public = answers.public
    path = find_norm_stats(source.folder, answers.asset or (None if public is None else public.asset))
    if path is None:
        raise VlaError(
            f'{source.named}: has no assets/NAME/norm_stats.json; bring the folder assets beside params or '
            'model.safetensors, or give --stats.'
        )
    state, actions, rules = read_statistics(path, contract, quantiles=config.adaptive)
    return (state, actions), rules, f'assets/{path.parent.name}/{path.name}, by the rules of {rules}'


def _flat_columns(stats: tuple[Stats, Stats], processing: Processing) -> dict[str, str]:
    """Which columns hardly move: a foreign policy's noise there is scaled up as it was in its training."""
    if processing.rules == 'ki':
        return {}
    flat = []
    for each, way in zip(stats, (processing.state_normalisation, processing.normalisation), strict=True):
        span = each.std * 4.0 if (way or processing.normalisation) == 'zscore' else each.q99 - each.q01
        flat += [each.names[place] for place in np.flatnonzero(span < MIN_SPAN)]
    if not flat:
        return {}
    return {'hardly moving': f'{", ".join(flat)}; scaled without a floor, as {processing.rules} does'}


def _serving(config: ModelConfig, policy: LerobotPolicy | None) -> Serving:
    """The default of its horizon, and what lerobot says about steps and delays."""
    said: dict[str, Any] = {} if policy is None else policy.said
    serving = Serving.for_horizon(config.horizon, max_delay=int(said.get('rtc_training_max_delay') or 0))
    steps = said.get('num_inference_steps')
    return serving if steps is None else serving.replace(denoise_steps=steps)


def _trained_parts(kind: str, config: ModelConfig) -> list[str]:
    """PaliGemma brings no action head, and nothing that reads a continuous state."""
    absent = {HEAD, 'state_proj'} if kind == 'paligemma' else set()
    return sorted({name.split('.')[0] for name in skeleton(config).state_dict()} - absent)
