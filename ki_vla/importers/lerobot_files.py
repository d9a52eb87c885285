"""What lerobot saves beside its weights: config.json, and the two processors with their statistics.

`policy_preprocessor.json` and `policy_postprocessor.json` list steps; a step with numbers names a safetensors file.
Versions 0.4 to 0.6 are read; older ones keep statistics among the weights, which the import refuses by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ki_common.errors import first_line, shown
from ki_common.files import read_json
from ki_robot.contract.contract import Contract
from ki_robot.errors import RobotError
from ki_robot.transforms import Normalisation, Stats
from ki_vla.errors import VlaError
from ki_vla.importers.checkpoint_metadata import CheckpointMetadata
from ki_vla.importers.norm_stats import Z99

PREPROCESSOR, POSTPROCESSOR = 'policy_preprocessor.json', 'policy_postprocessor.json'
STATE, ACTION, IMAGES = 'observation.state', 'action', 'observation.images.'
# How lerobot names a way to normalise: ours, and the two numbers of a column that our q01 and q99 then hold.
MODES: dict[str, tuple[Normalisation, tuple[str, str]]] = {
    'QUANTILES': ('quantile', ('q01', 'q99')),
    'QUANTILE10': ('quantile', ('q10', 'q90')),
    'MIN_MAX': ('quantile', ('min', 'max')),
    'MEAN_STD': ('zscore', ('q01', 'q99')),
    'IDENTITY': ('identity', ('q01', 'q99')),
}
DEFAULT_MODES = {'pi0': 'MEAN_STD', 'pi05': 'QUANTILES'}
MEMORY = ('use_visual_memory', 'use_proprioceptive_memory')
PADDED_TEXT = 32
FIELDS: dict[str, type] = {
    **dict.fromkeys(('input_features', 'output_features', 'normalization_mapping'), dict),
    **dict.fromkeys(('relative_exclude_joints', 'action_feature_names', 'image_resolution'), list),
    **dict.fromkeys(('tokenizer_max_length', 'num_inference_steps', 'rtc_training_max_delay'), int),
    **dict.fromkeys(('max_state_dim', 'max_action_dim'), int),
    'use_relative_actions': bool,
}
WORDS: dict[type, str] = {dict: 'a table', list: 'a list', int: 'a whole number', bool: 'true or false'}


@dataclass(frozen=True)
class LerobotPolicy:
    """A policy's files, read and checked.

    Attributes:
        metadata: config.json.
        modes: lerobot's way to normalise `STATE` and `ACTION`.
        numbers: statistics by feature and name; empty where the processors hold none (base models).
        relative: per action column, whether it is a difference to the state; None for a base model.
        action_names: lerobot's names of the action columns, where they are written down.
    """

    metadata: CheckpointMetadata
    modes: dict[str, str]
    numbers: dict[str, dict[str, np.ndarray]]
    relative: tuple[bool, ...] | None
    action_names: tuple[str, ...]

    @property
    def said(self) -> dict[str, Any]:
        """config.json as a table."""
        return self.metadata.said or {}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Views in model order, without the part that all their names begin with; empty ones left out."""
        features = self.said.get('input_features') or {}
        names = [name for name, each in features.items() if isinstance(each, Mapping) and each.get('type') == 'VISUAL']
        return tuple(name.removeprefix(IMAGES) for name in names if 'empty_camera' not in name)

    @property
    def unpadded_text(self) -> bool | None:
        """Whether the version that wrote config.json leaves the state in the prompt as it is.

        0.4 fills it up to 32 numbers, 0.5 and later do not. Only 0.5.1 and later can be told: they know relative
        actions.
        """
        return True if 'use_relative_actions' in self.said else None


def read_lerobot(metadata: CheckpointMetadata) -> LerobotPolicy:
    """The files around a lerobot checkpoint's weights.

    Raises:
        VlaError: no config.json, files that contradict each other, or parts that this model does not have.
    """
    if metadata.said is None:
        raise VlaError(f'{metadata.path}: is missing; lerobot writes it beside model.safetensors: bring it, too.')
    said, folder = metadata.said, metadata.path.parent
    for name, kind in FIELDS.items():
        value = said.get(name)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise VlaError(f'{metadata.path}: {name} is {shown(value)}; {WORDS[kind]} is needed.')
    for name in MEMORY:
        if said.get(name):
            raise VlaError(f'{metadata.path}: {name} is true; a policy that remembers older observations is not read.')
    if (said.get('image_resolution') or [224, 224]) != [224, 224]:
        raise VlaError(f'{metadata.path}: image_resolution is {said["image_resolution"]}; only [224, 224] is read.')
    before, after = _steps(folder / PREPROCESSOR), _steps(folder / POSTPROCESSOR)
    normalizer = before.get('normalizer_processor', {})
    numbers = _numbers(folder, normalizer)
    for feature, values in _numbers(folder, after.get('unnormalizer_processor', {})).items():
        if any(name in numbers.get(feature, {}) and not np.array_equal(numbers[feature][name], value)
               for name, value in values.items()):  # fmt: skip
            raise VlaError(f'{folder}: {PREPROCESSOR} and {POSTPROCESSOR} hold other statistics of {feature}.')
        numbers.setdefault(feature, values)
    norm_map = normalizer.get('config', {}).get('norm_map') or said.get('normalization_mapping') or {}
    if not isinstance(norm_map, dict):
        raise VlaError(f'{folder / PREPROCESSOR}: norm_map is {shown(norm_map)}; a table is needed.')
    default = DEFAULT_MODES.get(metadata.kind or '', 'QUANTILES')
    modes = {STATE: norm_map.get('STATE', default), ACTION: norm_map.get('ACTION', default)}
    unknown = [mode for mode in modes.values() if not isinstance(mode, str) or mode not in MODES]
    if unknown:
        raise VlaError(f'{metadata.path}: normalises by {shown(unknown[0])}; {", ".join(MODES)} are known.')
    names = tuple(str(name) for name in said.get('action_feature_names') or ())
    return LerobotPolicy(metadata, modes, numbers, _relative(metadata, before, names), names)


def lerobot_stats(policy: LerobotPolicy, contract: Contract) -> tuple[Stats, Stats] | None:
    """State and action statistics of the processors; None for a base model, which has none.

    Raises:
        VlaError: of another width than the robot, or without the numbers that the policy is normalised by.
    """
    wanted = {STATE: contract.state_names, ACTION: contract.action_names}
    if not any(policy.numbers.get(feature) for feature in wanted):
        return None
    state, actions = (_stats(policy, feature, names) for feature, names in wanted.items())
    return state, actions


def check_widths(policy: LerobotPolicy, contract: Contract) -> None:
    """Hold the robot's columns to the policy's.

    Raises:
        VlaError: another number of state or action columns.
    """
    for table, feature, names in (
        ('input_features', STATE, contract.state_names),
        ('output_features', ACTION, contract.action_names),
    ):
        width = _width(policy.said, table, feature)
        if width is None or width == len(names) or width == _padded(policy.said, feature):
            continue
        raise VlaError(
            f'{policy.metadata.path}: {table}.{feature} has {width} columns, and {contract.name} has {len(names)} '
            f"({', '.join(names)}); take a contract with the policy's columns."
        )


def _steps(path: Path) -> dict[str, dict[str, Any]]:
    """The steps of a processor by their registered name; none where there is no file."""
    if not path.is_file():
        return {}
    steps = read_json(path, VlaError).get('steps')
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and isinstance(step.get('config', {}), dict) for step in steps
    ):
        raise VlaError(f'{path}: has no list of steps with their config; it is no processor of lerobot.')
    return {str(step.get('registry_name') or step.get('class')): step for step in steps}


def _numbers(folder: Path, step: dict[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of a step by feature and name: `observation.state.q01` and so on, in its safetensors file."""
    name = step.get('state_file')
    if name is None:
        return {}
    path = folder / Path(str(name)).name
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise VlaError(f'{path}: cannot be read ({first_line(error)}); bring it beside the processors.') from error
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in tensors.items():
        feature, _, moment = key.rpartition('.')
        found.setdefault(feature, {})[moment] = np.asarray(value, dtype=np.float64)
    return found


def _relative(
    metadata: CheckpointMetadata, before: dict[str, dict[str, Any]], names: Sequence[str]
) -> tuple[bool, ...] | None:
    """Which action columns are differences to the state, as lerobot's step of that name decides it."""
    said = metadata.said or {}
    width = _width(said, 'output_features', ACTION)
    if width is None or width == _padded(said, ACTION):
        return None
    step = before.get('relative_actions_processor', {}).get('config', {})
    enabled = step.get('enabled', said.get('use_relative_actions', False))
    if bool(enabled) != bool(said.get('use_relative_actions', enabled)):
        raise VlaError(
            f'{metadata.path}: use_relative_actions is {said["use_relative_actions"]}, and enabled is {enabled} in '
            f'{PREPROCESSOR}; correct the wrong one.'
        )
    if not enabled:
        return (False,) * width
    kept = [str(name).lower() for name in step.get('exclude_joints', said.get('relative_exclude_joints', [])) if name]
    named = [str(name).lower() for name in step.get('action_names') or names]
    if kept and not named:
        return (True,) * width  # lerobot takes all columns where it has no names
    absolute = [any(word in name for word in kept) for name in named[:width]]
    return tuple(not each for each in absolute) + (True,) * (width - len(absolute))


def _stats(policy: LerobotPolicy, feature: str, names: Sequence[str]) -> Stats:
    """One feature's statistics, its two outer numbers where our formula looks for them."""
    where, values = policy.metadata.path.parent / PREPROCESSOR, policy.numbers.get(feature, {})
    mode = policy.modes[feature]
    kind, (low, high) = MODES[mode]
    count = len(names)
    needed = {'quantile': (low, high), 'zscore': ('mean', 'std'), 'identity': ()}[kind]
    missing = [name for name in needed if name not in values]
    if missing:
        raise VlaError(f'{where}: normalises {feature} by {mode} and holds no {", ".join(missing)} of it.')
    widths = {name: value.shape for name, value in values.items() if name != 'count'}
    wrong = next((name for name, shape in widths.items() if shape != (count,)), None)
    if wrong is not None:
        raise VlaError(
            f'{where}: {feature}.{wrong} has the shape {list(widths[wrong])}, and {count} columns are needed for this '
            f"robot ({', '.join(names)}); take a contract with the policy's columns."
        )
    mean = values.get('mean', np.zeros(count))
    std = values.get('std', np.ones(count))
    if kind == 'quantile':
        mean, std = (
            values.get('mean', (values[low] + values[high]) / 2.0),
            values.get('std', values[high] - values[low]),
        )
    q01, q99 = values.get(low, mean - Z99 * std), values.get(high, mean + Z99 * std)
    told = {'source': where.name, 'normalised by': mode, 'q01 and q99': f'{low} and {high} of lerobot'}
    samples = int(np.asarray(values.get('count', 1)).reshape(-1)[0])
    try:
        return Stats(tuple(names), mean, std, q01, q99, max(1, samples), told)
    except RobotError as error:
        raise VlaError(f'{where}: {feature}: {error}') from error


def _width(said: Mapping[str, Any], table: str, feature: str) -> int | None:
    """Columns of a feature, where config.json says."""
    each = (said.get(table) or {}).get(feature)
    shape = each.get('shape') if isinstance(each, Mapping) else None
    return int(shape[0]) if isinstance(shape, list) and len(shape) == 1 else None


def _padded(said: Mapping[str, Any], feature: str) -> int:
    """The width that lerobot pads to, which base models give as their own."""
    return int(said.get('max_state_dim' if feature == STATE else 'max_action_dim', 32))
