"""What a run is: one frozen dataclass a section, read from YAML, every typo refused by name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ki_vla.model.config import PRESETS
from ki_vla.objective.recipes import RECIPES
from training.errors import TrainingError


@dataclass(frozen=True)
class Data:
    """Where samples come from.

    Attributes:
        bags: an index (`ki data index`), or a folder of recordings, which is then indexed.
        arrays: recordings of the simulator as .npz, in place of bags.
        vlm: pictures with words to train on: JSONL files, tar shards, or folders of them.
        vlm_held: the same, for evaluation only.
        validation: share of episodes held out.
        split_seed: another seed, another split.
        stride: every how many steps of an episode a sample begins.
        outcomes: episodes of which outcome take part.
        subtask: share of the action samples that also say what comes next, where the data tell; with `Run.subtasks`,
            of those that say it and do not act, while the others act on it.
        task: instruction of recordings that carry none (when bags are indexed here).
        start_steps: how many steps the start of an episode has, see `Stage.starts`.
    """

    bags: str | None = None
    arrays: str | None = None
    vlm: tuple[str, ...] = ()
    vlm_held: tuple[str, ...] = ()
    validation: float = 0.1
    split_seed: int = 0
    stride: int = 1
    outcomes: tuple[str, ...] = ('unlabeled', 'success')
    subtask: float = 0.3
    task: str = ''
    start_steps: int = 20

    def __post_init__(self) -> None:
        _one_source('data', self)
        _within('data.validation', self.validation, 0.0, 0.9)
        _within('data.subtask', self.subtask, 0.0, 1.0)
        for name in ('stride', 'start_steps'):
            _at_least(f'data.{name}', getattr(self, name), 1)


@dataclass(frozen=True)
class Embodiment:
    """Another robot whose recordings train the same weights. Statistics are its own; the bundle is for `Run.robot`.

    Attributes:
        robot: its contract, with the horizon of `Run.robot`.
        bags, arrays, task: as in `Data`; all of its episodes are trained on.
        weight: how often its samples are drawn, relative to those of `Run.robot` (`Stage.actions`).
    """

    robot: str
    bags: str | None = None
    arrays: str | None = None
    task: str = ''
    weight: float = 1.0

    def __post_init__(self) -> None:
        where = f'embodiments: {self.robot}'
        _one_source(where, self)
        if self.weight <= 0:
            raise TrainingError(f'{where}: weight {self.weight} must be above 0.')


@dataclass(frozen=True)
class Simulate:
    """Data that the command `ki train` makes with the simulator before it trains; files that are there are kept.

    Attributes:
        out: folder for arrays/ and knowledge/.
        tasks: of ki_sim.tasks.tasks, or `all`.
        episodes: of each task, from `first_seed` on.
        scenes, held_scenes: scenes with words to train on, and of the held-out split.
        arrangements: pictures of each training scene, its things elsewhere in each.
        image_size: of the cameras.
        workers: processes; 0: one per core.
    """

    out: str = 'out/simulated'
    tasks: tuple[str, ...] = ('demo',)
    episodes: int = 100
    first_seed: int = 0
    scenes: int = 0
    held_scenes: int = 0
    arrangements: int = 1
    image_size: int = 96
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ('episodes', 'arrangements'):
            _at_least(f'simulate.{name}', getattr(self, name), 1)
        for name in ('scenes', 'held_scenes', 'first_seed', 'workers'):
            _at_least(f'simulate.{name}', getattr(self, name), 0)


@dataclass(frozen=True)
class Tokens:
    """The vocabulary of a model trained from scratch: text tokens, box steps, action tokens, FAST's scale.

    `tokenizer` names a folder or file of Gemma's tokenizer instead; a bundle given as `start` brings its own.
    """

    tokenizer: str | None = None
    text: int = 512
    boxes: int = 128
    actions: int = 512
    scale: float = 10.0
    split_digits: bool = False


@dataclass(frozen=True)
class Augment:
    """How far pictures are changed, drawn anew for every sample; 0 (crop: 1) leaves that out.

    Attributes:
        crop: side of the crop, as a share; scene cameras only, like `rotate`.
        rotate: degrees to either side.
        brightness, contrast, saturation: factors are drawn from 1 - x to 1 + x.
    """

    crop: float = 0.95
    rotate: float = 5.0
    brightness: float = 0.3
    contrast: float = 0.4
    saturation: float = 0.5

    def __post_init__(self) -> None:
        _within('augment.crop', self.crop, 0.1, 1.0)
        _within('augment.rotate', self.rotate, 0.0, 180.0)
        for name in ('brightness', 'contrast', 'saturation'):
            _within(f'augment.{name}', getattr(self, name), 0.0, 1.0)


@dataclass(frozen=True)
class Stage:
    """One stretch of training with a schedule of its own; the next one starts from its weights.

    Attributes:
        name: of its folder.
        recipe: a name of ki_vla.objective.recipes.
        steps: optimiser steps.
        actions, vlm: how often each kind of sample is drawn, relative to the other; 0 leaves it out.
        starts: the same, of action samples from the start of an episode alone. Only there must everything be read from
            pictures and words: later, where the robot is already going tells most of where it goes.
        kinds: of the pictures with words, only these (caption, box, ...); all where it is empty.
        batch: samples of a step, over all processes and micro-batches together.
        accumulate: micro-batches of a step.
        draws: (tau, noise) draws for each backbone pass.
        max_delay: first actions given clean at most, for real-time chunking.
        rate, final_rate, warmup: of the learning rate: peak, share of it at the end, steps to the peak.
        weight_decay, clip: of AdamW, and of the gradient's norm.
        ema: decay of the averaged weights, which are the ones evaluated and shipped; 0: none.
        expert_rate: factor on the rate for the action expert.
    """

    name: str = 'vla'
    recipe: str = 'ours'
    steps: int = 1000
    actions: float = 1.0
    vlm: float = 0.0
    starts: float = 0.0
    kinds: tuple[str, ...] = ()
    batch: int = 32
    accumulate: int = 1
    draws: int = 4
    max_delay: int = 0
    rate: float = 1e-3
    final_rate: float = 0.1
    warmup: int = 100
    beta2: float = 0.95
    weight_decay: float = 1e-4
    clip: float = 1.0
    ema: float = 0.999
    expert_rate: float = 1.0

    def __post_init__(self) -> None:
        if self.recipe not in RECIPES:
            raise TrainingError(f'stage.recipe: {self.recipe!r} is unknown; {_nearest(self.recipe, RECIPES)}')
        for name in ('steps', 'batch', 'accumulate', 'draws'):
            _at_least(f'stage.{name}', getattr(self, name), 1)
        for name in ('warmup', 'max_delay', 'actions', 'vlm', 'starts', 'weight_decay'):
            _at_least(f'stage.{name}', getattr(self, name), 0)
        for name in ('rate', 'clip', 'expert_rate'):
            if getattr(self, name) <= 0:
                raise TrainingError(f'stage.{name}: {getattr(self, name)} must be above 0.')
        _within('stage.ema', self.ema, 0.0, 1.0)
        if self.actions + self.starts + self.vlm <= 0:
            raise TrainingError(f'stage {self.name}: actions, starts and vlm are all 0; nothing would be drawn.')
        if self.batch % self.accumulate:
            raise TrainingError(f'stage {self.name}: batch {self.batch} is not a multiple of accumulate.')


@dataclass(frozen=True)
class Run:
    """All of a run.

    Attributes:
        out: the run's folder.
        robot: contract of the recordings; an index has its own.
        embodiments: other robots in the same run.
        preset, model: a preset of ki_vla.model.config, and fields of it to change.
        start: a bundle to start from, in place of random weights.
        stats: statistics from a file (`ki data stats`) in place of those of the data.
        simulate: data to make first.
        normalisation, pad_steps, subtasks: see `ki_vla.policy.model_inputs.Processing`.
        device: cpu, cuda, or auto.
        bf16: matrix products in bfloat16, weights in float32. None: on a GPU only.
        lora: rank of adapters on backbone and vision tower, which then stand still otherwise; 0: train them whole.
        checkpointing: recompute blocks in the backward pass.
        compile: torch.compile the model.
        workers: loader threads; processes with `loader_processes`.
        log_every, save_every, validate_every: in steps.
        validate_batches: batches of the validation split, the same ones each time.
        keep: checkpoints kept.
        max_skips: steps in a row that may be skipped for a loss that is not finite.
        wandb: project of Weights & Biases that metrics are sent to as well; none: nothing leaves this machine.
    """

    name: str = 'policy'
    out: str = 'out/train'
    robot: str = 'bimanual_mobile'
    preset: str = 'tiny'
    model: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    stats: str | None = None
    simulate: Simulate | None = None
    data: Data = field(default_factory=lambda: Data(bags='bags'))
    embodiments: tuple[Embodiment, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)
    augment: Augment = field(default_factory=Augment)
    stages: tuple[Stage, ...] = field(default_factory=lambda: (Stage(),))
    seed: int = 0
    normalisation: str = 'quantile'
    pad_steps: str = 'mask'
    subtasks: bool = False
    device: str = 'auto'
    bf16: bool | None = None
    lora: int = 0
    checkpointing: bool = False
    compile: bool = False
    workers: int = 2
    loader_processes: bool = False
    log_every: int = 10
    save_every: int = 500
    validate_every: int = 500
    validate_batches: int = 4
    keep: int = 2
    max_skips: int = 10
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise TrainingError(f'preset: {self.preset!r} is unknown; {_nearest(self.preset, PRESETS)}')
        if not self.stages:
            raise TrainingError('stages: there are none; write at least one.')
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
            raise TrainingError(f'stages: the names {names} must differ and be plain words; they name folders.')
        if any(stage.vlm for stage in self.stages) and not self.data.vlm:
            raise TrainingError('stages: one draws vlm samples, but data.vlm names no files.')
        _at_least('lora', self.lora, 0)
        for name in ('log_every', 'save_every', 'validate_every', 'keep', 'max_skips'):
            _at_least(name, getattr(self, name), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which `run_from_dict` reads back."""
        return _plain(asdict(self))


SECTIONS: dict[str, type] = {'data': Data, 'simulate': Simulate, 'tokens': Tokens, 'augment': Augment}
LISTS: dict[str, type] = {'stages': Stage, 'embodiments': Embodiment}


def load_run(path: str | Path, **changes: Any) -> Run:
    """A run from a YAML file; `changes` replace fields at the top.

    Raises:
        TrainingError: no such file, no YAML, or a field that does not exist or does not fit.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f'{path} cannot be read: {error}.') from error
    except yaml.YAMLError as error:
        raise TrainingError(f'{path} is no YAML: {" ".join(str(error).split())}.') from error
    if not isinstance(data, dict):
        raise TrainingError(f'{path} must hold a table of fields, it holds {type(data).__name__}.')
    try:
        return run_from_dict(data | changes)
    except TrainingError as error:
        raise TrainingError(f'{path}: {error}') from error


def run_from_dict(data: Mapping[str, Any]) -> Run:
    """A run from plain data.

    Raises:
        TrainingError: a field that does not exist, lacks, or has another type.
    """
    values = dict(data)
    for name, kind in SECTIONS.items():
        if values.get(name) is not None:
            values[name] = _build(kind, name, values[name])
    for name, kind in LISTS.items():
        if name in values:
            if not isinstance(values[name], list | tuple):
                raise TrainingError(f'{name}: write a list.')
            values[name] = tuple(_build(kind, f'{name}[{i}]', each) for i, each in enumerate(values[name]))
    return _build(Run, '', values)


def _build(kind: type, where: str, data: Any) -> Any:
    """An instance from a table: unknown names are refused with the nearest known one, types are held."""
    if isinstance(data, kind):
        return data
    if not isinstance(data, Mapping):
        raise TrainingError(f'{where}: a table of fields is needed, not {data!r}.')
    known = {each.name: each for each in fields(kind)}
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise TrainingError(f'{_join(where, name)} is no field; {_nearest(str(name), known)}')
        values[name] = _typed(_join(where, name), value, known[name])
    missing = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in values]
    if missing:
        raise TrainingError(f'{where}: {", ".join(missing)} is missing.')
    return kind(**values)


def _typed(where: str, value: Any, about: Any) -> Any:
    """A value of the field's type; whole numbers pass for numbers, and what YAML reads '1e-3' as."""
    kind = str(about.type)
    if value is None and 'None' in kind:
        return None
    if kind.startswith('tuple[str'):
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise TrainingError(f'{where}: {value!r} is not a list of texts.')
        return tuple(given)
    if kind.startswith('float'):
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise TrainingError(f'{where}: {value!r} is not a number.')
        return number
    for word, wanted in (('bool', bool), ('int', int), ('str', str), ('Mapping', Mapping)):
        if kind.startswith(word):
            if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
                raise TrainingError(f'{where}: {value!r} is not a {word}.')
            return value
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _join(where: str, name: Any) -> str:
    return f'{where}.{name}' if where else str(name)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f'did you mean {near[0]}?' if near else f'choose one of {", ".join(known)}.'


def _one_source(where: str, data: Data | Embodiment) -> None:
    if (data.bags is None) == (data.arrays is None):
        raise TrainingError(f'{where}: name either bags or arrays, not both and not neither.')


def _within(where: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise TrainingError(f'{where}: {value} must lie in {low:g}..{high:g}.')


def _at_least(where: str, value: float, least: float) -> None:
    if value < least:
        raise TrainingError(f'{where}: {value} must be at least {least}.')
