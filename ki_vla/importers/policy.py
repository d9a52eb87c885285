"""Import a foreign checkpoint as a bundle, and export a bundle in openpi's or lerobot's layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from ki_robot.contract.contract import Contract
from ki_robot.transforms import Stats
from ki_vla.errors import VlaError
from ki_vla.importers.checkpoint_metadata import HORIZONS, read_metadata
from ki_vla.importers.lerobot import check_kind, export_lerobot, import_lerobot
from ki_vla.importers.mapping import ImportReport
from ki_vla.importers.norm_stats import read_norm_stats, write_norm_stats
from ki_vla.importers.openpi import default_config, export_openpi, import_openpi
from ki_vla.importers.paligemma import import_paligemma
from ki_vla.importers.stream import open_checkpoint
from ki_vla.model.config import HEAD, ModelConfig, preset
from ki_vla.model.kivla import skeleton
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.tokens.fast import load_public
from ki_vla.tokens.tokenizer import TextTokenizer, load_gemma
from ki_vla.tokens.vocabulary import gemma_vocabulary

IMPORTERS = {'paligemma': import_paligemma, 'openpi': import_openpi, 'lerobot': import_lerobot}
LAYOUTS = ('openpi', 'lerobot')


def import_policy(
    kind: str,
    source: str | Path,
    folder: str | Path,
    *,
    name: str,
    contract: Contract,
    stats: str | Path | tuple[Stats, Stats],
    tokenizer: str | Path | TextTokenizer,
    fast: str | Path | None = None,
    config: ModelConfig | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> tuple[Bundle, ImportReport]:
    """Make a bundle of a local foreign checkpoint; the weights are streamed straight into it.

    Args:
        kind: 'paligemma', 'openpi' or 'lerobot'.
        source: the checkpoint's folder or file.
        folder: the bundle to write.
        name: what to call the policy.
        contract: the robot it is for; its columns in the order the checkpoint was trained with.
        stats: openpi's norm_stats.json, or state and action statistics.
        tokenizer: a Gemma or PaliGemma tokenizer.json or its folder; or one that is loaded.
        fast: a folder in the layout of physical-intelligence/fast; without it the policy has no action tokens.
        config: the model; found from the checkpoint and the contract unless given.
        dtype: float32 or bfloat16.
        overwrite: replace a bundle that is there.

    Raises:
        VlaError: the kind is unknown, any tensor is unaccounted for, the checkpoint was trained with another horizon
            than the robot's, or the parts do not fit each other.
    """
    if kind not in IMPORTERS:
        raise VlaError(f'{kind!r} is no kind of checkpoint; choose {", ".join(IMPORTERS)}.')
    config = config or _config(kind, source, contract)
    provenance = {
        'imported_from': kind,
        'source': Path(source).name,
        'trained': _trained_parts(kind, config),
        **_trained_for(kind, source, config, contract),
    }
    state, actions = _statistics(stats, contract, config)
    text = tokenizer if isinstance(tokenizer, TextTokenizer) else load_gemma(tokenizer)
    codec = None if fast is None else load_public(fast, horizon=config.horizon, columns=len(contract.actions))
    # pi0 was trained on z-scores, pi0.5 on quantiles.
    processing = Processing(normalisation='quantile' if config.adaptive else 'zscore')
    processor = Processor(contract, state, actions, text, codec, config, processing)
    reports: list[ImportReport] = []

    def write(path: Path) -> None:
        reports.append(IMPORTERS[kind](source, path, config=config, dtype=dtype))

    bundle = write_bundle(
        folder, name=name, weights=write, processor=processor, provenance=provenance, overwrite=overwrite
    )
    return bundle, reports[0]


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


def _statistics(
    stats: str | Path | tuple[Stats, Stats], contract: Contract, config: ModelConfig
) -> tuple[Stats, Stats]:
    """State and action statistics; quantiles are needed where the policy is scaled by them."""
    if isinstance(stats, str | Path):
        return read_norm_stats(stats, contract, quantiles=config.adaptive)
    return stats


def _config(kind: str, source: str | Path, contract: Contract) -> ModelConfig:
    """The model of a checkpoint, with the robot's horizon and as many views as it has cameras."""
    found = preset('full') if kind == 'paligemma' else default_config(open_checkpoint(source))
    return found.replace(horizon=contract.horizon, views=max(found.views, len(contract.cameras)))


def _trained_parts(kind: str, config: ModelConfig) -> list[str]:
    """PaliGemma brings no action head, and nothing that reads a continuous state."""
    absent = {HEAD, 'state_proj'} if kind == 'paligemma' else set()
    return sorted({name.split('.')[0] for name in skeleton(config).state_dict()} - absent)


def _trained_for(kind: str, source: str | Path, config: ModelConfig, contract: Contract) -> dict[str, str]:
    """What the checkpoint was trained for, from its metadata; where that is silent, what is assumed.

    Raises:
        VlaError: another horizon than the robot's, or another kind of policy than the tensors are.
    """
    if kind == 'paligemma':
        return {'note': 'the action expert is freshly initialised; train before use'}
    metadata = check_kind(read_metadata(source), config)
    if metadata.horizon not in (None, contract.horizon):
        raise VlaError(
            f'{metadata.path}: {metadata.field} is {metadata.horizon}, and horizon is {contract.horizon} in the '
            f"contract of {contract.name}; a policy plans as many steps as it was trained with: set the contract's "
            f'horizon to {metadata.horizon}, or take a checkpoint that was trained with {contract.horizon}.'
        )
    by = metadata.field or f"assumed from the robot's contract; no config.json with {' or '.join(HORIZONS)}"
    found = {'horizon': f'{contract.horizon} steps ({by})'}
    if config.adaptive and config.state_repr == 'text':
        found['state'] = (
            'as text in the prompt' if metadata.state_in_prompt else 'assumed to be read as text in the prompt'
        )
        if metadata.state_in_prompt is False:
            warnings.warn(
                f'{metadata.path}: discrete_state_input is false: the policy was trained without the state in its '
                'prompt and here it will read one there; train it on, or take a checkpoint that was trained with it.',
                stacklevel=3,
            )
            found['state'] = 'trained without it; here it stands in the prompt'
    return found
