"""What a run is, read from YAML: sections, fields with their meaning, unit and bounds, and the rules between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_common.configuration.types import ChangesOf, Matches, OneOf, Words
from ki_common.configuration.yaml_reader import read_yaml
from ki_common.errors import shown
from ki_vla.errors import VlaError
from ki_vla.model.config import PRESETS, ModelConfig
from ki_vla.objective.recipes import RECIPES, Recipe
from ki_vla.policy.model_inputs import FlowScale, JpegDecode, PadSteps
from training.errors import TrainingError

Outcome = Literal['unlabeled', 'success', 'failure', 'discard']


class TrainingConfig(Config):
    """The base of a run and its sections."""

    raises = TrainingError


def _one_of_two(bags: str | None, arrays: str | None) -> None:
    if bags is None and arrays is None:
        raise ValueError('bags and arrays are both left out; name the one that there is')
    if bags is not None and arrays is not None:
        raise ValueError(f'bags is {bags!r} and arrays {arrays!r}; name only one of the two')


class Interventions(TrainingConfig):
    """What a human corrected while a policy ran (HG-DAgger, arXiv 1810.02890), by the recorded topic control_source."""

    weight: float = Field(default=1.0, ge=1, le=1000)
    """How often a step that a human drove is drawn, relative to another one."""
    only: bool = False
    """Train on nothing else; of a chunk, only what the human did counts."""


class Data(TrainingConfig):
    """The recordings and the pictures with words of a run, and how samples are drawn from them."""

    bags: str | None = None
    """An index (`ki data index`), or a folder of recordings, which is then indexed."""
    arrays: str | None = None
    """Recordings of the simulator as .npz, in place of bags."""
    vlm: Words = ()
    """Pictures with words to train on: JSONL files, tar shards, or folders of them."""
    vlm_held: Words = ()
    """The same, for evaluation only."""
    validation: float = Field(default=0.1, ge=0, le=0.9)
    """Share of the episodes that is held out."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the split: another one holds out other episodes."""
    stride: int = Field(default=1, ge=1)
    """Steps of an episode between the beginnings of two samples."""
    outcomes: tuple[Outcome, ...] = Field(default=('unlabeled', 'success'), min_length=1)
    """Episodes of which outcome take part."""
    subtask: float = Field(default=0.3, ge=0, le=1)
    """Share of the action samples that also say what comes next, where the data tell; with `Run.subtasks`, of those
    that say it and do not act, while the others act on it."""
    task: str = ''
    """Instruction of recordings that carry none (when bags are indexed here)."""
    trim: str | None = None
    """A list of episodes and steps by `ki doctor data --trim`: nothing else of the recordings takes part."""
    interventions: Interventions = Interventions()
    """How steps count that a human drove."""
    start_steps: int = Field(default=20, ge=1)
    """How many steps the start of an episode has, see `Stage.starts`."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        _one_of_two(self.bags, self.arrays)
        return self


class Embodiment(TrainingConfig):
    """Another robot whose recordings train the same weights. Statistics are its own; the bundle is for `Run.robot`. Or
    further recordings of `Run.robot` from elsewhere, with its statistics: old data beside corrections.
    """

    robot: str
    """Its contract, with the horizon of `Run.robot`; or that of `Run.robot` once more."""
    bags: str | None = None
    """As in `Data`; all of its episodes are trained on."""
    arrays: str | None = None
    """As in `Data`."""
    task: str = ''
    """As in `Data`."""
    weight: float = Field(default=1.0, gt=0)
    """How often its samples are drawn, relative to those of `Run.robot` (`Stage.actions`)."""

    @model_validator(mode='after')
    def _one_source(self) -> Self:
        _one_of_two(self.bags, self.arrays)
        return self


class Simulate(TrainingConfig):
    """Data that `ki train` makes with the simulator before it trains; files that are there are kept."""

    out: str = 'out/simulated'
    """Folder for arrays/, moments/ and vqa/."""
    tasks: Words = ('demo',)
    """Tasks of the simulator (`ki sim --help`), `suite` for the short ones, or `all`."""
    episodes: int = Field(default=100, ge=0)
    """Episodes of each task, from scene `first_seed` on."""
    moments: int = Field(default=0, ge=0)
    """Labelled moments of all tasks together: pictures of states on, beside and off the expert's way, each with what it
    does from there. About 5000 a minute and core with three cameras, 8500 with one."""
    bias: float = Field(default=0.85, ge=0, le=1)
    """In how many of the moments the object that is asked for is the one nearest to the hand that is to do it."""
    first_seed: int = Field(default=0, ge=0)
    """Scene of the first episode."""
    scenes: int = Field(default=0, ge=0)
    """Scenes with words to train on."""
    held_scenes: int = Field(default=0, ge=0)
    """Scenes with words of the held-out split."""
    arrangements: int = Field(default=1, ge=1)
    """Pictures of each training scene, its objects elsewhere in each."""
    image_size: int = Field(default=96, ge=1)
    """Side of the camera images, pixels."""
    workers: int = Field(default=0, ge=0)
    """Processes; 0: one per core."""


class Tokens(TrainingConfig):
    """A vocabulary that is fitted on the data."""

    tokenizer: str | None = None
    """Folder or file of Gemma's tokenizer, in place of one that is trained on the data."""
    text: int = Field(default=512, ge=1)
    """Text tokens."""
    boxes: int = Field(default=128, ge=1)
    """Steps of a box coordinate, each a token."""
    actions: int = Field(default=512, ge=1)
    """Action tokens."""
    scale: float = Field(default=10.0, gt=0)
    """How finely FAST rounds its coefficients: higher is finer and takes more tokens."""
    split_digits: bool = False
    """One token a digit."""


class Augment(TrainingConfig):
    """How far pictures are changed, drawn anew for every sample; 0 (crop: 1) leaves that out."""

    crop: float = Field(default=0.95, ge=0.1, le=1)
    """Side of the crop, as a share; scene cameras only."""
    rotate: float = Field(default=5.0, ge=0, le=180)
    """Degrees to either side; scene cameras only."""
    brightness: float = Field(default=0.3, ge=0, le=1)
    """Factors are drawn from 1 - x to 1 + x."""
    contrast: float = Field(default=0.4, ge=0, le=1)
    """Factors are drawn from 1 - x to 1 + x."""
    saturation: float = Field(default=0.5, ge=0, le=1)
    """Factors are drawn from 1 - x to 1 + x."""


class Stage(TrainingConfig):
    """One stretch of training with a schedule of its own; the next one starts from its weights."""

    name: Annotated[str, Matches(r'[A-Za-z_][A-Za-z0-9_]*', 'write a plain word; it names a folder')] = 'vla'
    """Name of the stage and of its folder."""
    recipe: Annotated[str, OneOf(RECIPES)] = 'ours'
    """Losses and gradients: a name of ki_vla.objective.recipes."""
    steps: int = Field(default=1000, ge=1)
    """Optimiser steps."""
    actions: float = Field(default=1.0, ge=0)
    """How often samples with actions are drawn, relative to the other kinds; 0 leaves them out."""
    vlm: float = Field(default=0.0, ge=0)
    """How often pictures with words are drawn, relative to the other kinds."""
    starts: float = Field(default=0.0, ge=0)
    """How often samples with actions from the start of an episode are drawn, relative to the other kinds. Only there
    must everything be read from pictures and words: later, where the robot is already going tells most of where it
    goes."""
    kinds: Words = ()
    """Kinds of pictures with words to draw (caption, box, ...); empty: all."""
    batch: int = Field(default=32, ge=1)
    """Samples of a step, over all processes and micro-batches together."""
    accumulate: int = Field(default=1, ge=1)
    """Micro-batches of a step."""
    draws: int = Field(default=4, ge=1)
    """(tau, noise) draws for each backbone pass."""
    max_delay: int | None = Field(default=None, ge=0)
    """First action steps given clean at most, for real-time chunking. Left out: as the bundle that the run starts from,
    else 0."""
    rate: float = Field(default=1e-3, gt=0)
    """Learning rate at its peak."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a share of the peak."""
    warmup: int = Field(default=100, ge=0)
    """Steps to the peak of the learning rate."""
    optimiser: Literal['adamw', 'muon'] = 'adamw'
    """`muon`: the matrices of layers step along orthogonalised momentum (arXiv 2502.16982), the rest by AdamW, at the
    same rate."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the mean square of gradients in AdamW."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Weight decay of AdamW."""
    clip: float = Field(default=1.0, gt=0)
    """Gradients are shortened to this norm."""
    ema: float | None = Field(default=None, ge=0, lt=1)
    """Decay of the averaged weights, which are the ones evaluated and shipped; 0: none. Left out: 0.999 for a run from
    random weights, none for one with `Run.start`, whose weights move little and at full size cost 13 GB once more."""
    expert_rate: float = Field(default=1.0, gt=0)
    """Factor on the learning rate for the action expert."""
    text_weight: float | None = Field(default=None, ge=0)
    """Weight of the mean loss over text tokens, apart from that over action tokens. Left out, with fast_weight: one
    mean over both, in which the more numerous ones count for more; left out alone: 1."""
    fast_weight: float | None = Field(default=None, ge=0)
    """The same of action tokens."""
    dense: float = Field(default=1.0, ge=0)
    """Weight of the heads for training only (`model.dense`), where the model has them."""
    kept: int = Field(default=0, ge=0)
    """Samples whose keys and values are computed once and kept in memory, for a recipe that leaves the backbone as it
    is (frozen): they are drawn again and again, each time with fresh noise, at a fraction of the price. 0:
    none."""
    sight: bool = False
    """Of samples with actions learn only what their pictures show, and where in them the thing is that is asked for
    (`model.dense`): the actions carry no loss. A model without pretrained eyes learns to see so in minutes; a sample
    costs less than half of one with actions."""

    @property
    def trains(self) -> Recipe:
        """The recipe as this stage trains it; sight is taught with words, whatever the recipe does with them later."""
        chosen = RECIPES[self.recipe]
        if not self.sight:
            return chosen
        return dataclasses.replace(chosen, targets='none', loss='none', vlm_data=True, stages=())

    @model_validator(mode='after')
    def _draws_something(self) -> Self:
        if self.actions + self.starts + self.vlm <= 0:
            raise ValueError('actions, starts and vlm are all 0, so nothing would be drawn; write one above 0')
        if self.kept and not RECIPES[self.recipe].frozen:
            raise ValueError(
                f'kept is {self.kept}, and recipe {self.recipe} trains the backbone, so nothing stays as it was '
                'computed; write 0, or take frozen'
            )
        if self.kept and (self.vlm or self.kept < self.batch):
            raise ValueError(
                f'kept is {self.kept}, batch {self.batch}, vlm {self.vlm:g}; keep a batch or more, of actions alone'
            )
        if self.batch % self.accumulate:
            raise ValueError(f'batch is {self.batch}; write a multiple of accumulate, {self.accumulate}')
        return self


class Served(TrainingConfig):
    """How the bundle says that it is to be served, see `ki_vla.policy.serving`."""

    denoise_steps: int | None = Field(default=None, ge=1)
    """Euler steps from noise to actions; a small policy may be the better for fewer (`ki eval sim --denoise-steps`).
    Left out: as the bundle that the run starts from, else 10."""
    execute_steps: int | None = Field(default=None, ge=1)
    """Steps of a chunk that are executed before the next one is due. Left out: as the bundle that the run starts from,
    where its chunks are as long, else half a chunk."""


class Run(TrainingConfig):
    """A training run: data, model, stages, and what is logged and saved."""

    name: Annotated[str, Matches(r'[^@/\s]+', 'write a name without blanks, @ and /; it names the bundle')] = 'policy'
    """Name of the policy and of its bundle."""
    out: str = 'out/train'
    """The run's folder."""
    robot: str = 'bimanual_mobile'
    """Contract of the recordings: a name of config/robots, or a file; an index has its own."""
    preset: Annotated[str, OneOf(tuple(PRESETS))] | None = None
    """Size of the model: a preset of ki_vla.model.config. Left out: as the bundle that it starts from, else tiny."""
    model: Annotated[dict[str, Any], ChangesOf(ModelConfig)] = Field(default_factory=dict)
    """Fields of the preset to change."""
    start: str | None = None
    """A bundle to start from. Weights are taken by name and shape; what it lacks, or has in another shape, begins
    anew. Its structure, tokens, statistics, processing and delays stay, unless this run says otherwise."""
    stats: str | None = None
    """Statistics: `keep`, those of the bundle that it starts from, as wide as the data in columns that hardly moved
    before; `refit`, those of the data; or a file (`ki data stats`). Left out: keep where it starts from a bundle for
    the same columns, else refit."""
    simulate: Simulate | None = None
    """Data to make first."""
    data: Data = Data(bags='bags')
    """Where samples come from. Left out: the folder bags."""
    embodiments: tuple[Embodiment, ...] = ()
    """Other robots in the same run."""
    tokens: Tokens | None = None
    """The vocabulary. Left out: that of the bundle that it starts from, else one with the defaults."""
    augment: Augment = Augment()
    """How pictures are changed."""
    stages: tuple[Stage, ...] = Field(default=(Stage(),), min_length=1)
    """Stretches of training, in order. Left out: one with the defaults."""
    served: Served = Served()
    """What its bundle recommends."""
    seed: int = Field(default=0, ge=0)
    """Decides weights, draws and noise."""
    normalisation: Literal['quantile', 'zscore'] | None = None
    """How state and actions are normalised: by quantiles (pi0.5, FAST) or by mean and deviation (pi0). Left out: as the
    bundle that it starts from where its statistics stay, else quantile."""
    flow_scale: FlowScale | None = None
    """How continuous actions are scaled: `column`, or `step`, each step of a chunk by its own mean and deviation. Left
    out: as the bundle that it starts from, else column."""
    pad_steps: PadSteps | None = None
    """What becomes of action tokens where steps lie beyond the end of an episode: left out of the loss (mask), or
    trained on (keep). Left out: as the bundle that it starts from, else mask."""
    jpeg_decode: JpegDecode | None = None
    """How JPEGs of cameras are decoded, here and where the policy runs: `full`, at their size, or `reduced`, at a half,
    a quarter or an eighth of it where that is as large as what the model is shown, which takes less time. Left out: as
    the bundle that it starts from, else reduced; full where an index holds pictures at the model's size."""
    subtasks: bool | None = None
    """Two levels, as pi0.5: the policy first says what it will do next, and acts on those words. Left out: as the
    bundle that it starts from, else false."""
    device: Literal['auto', 'cpu', 'cuda'] = 'auto'
    """What to train on; auto: a GPU where there is one."""
    bf16: bool | None = None
    """Matrix products in bfloat16, weights in float32. Left out: on a GPU only."""
    lora: int = Field(default=0, ge=0)
    """Rank of adapters on backbone and vision tower, which then stand still otherwise; 0: train them whole."""
    ema_on: Literal['device', 'cpu'] = 'device'
    """Where averaged weights lie; `cpu` spares the GPU a copy of the weights."""
    ema_every: int = Field(default=1, ge=1)
    """Steps between two updates of averaged weights, which decay for all of them; about 10 with `ema_on: cpu`, where
    each update moves all weights across the bus."""
    checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    compile: bool = False
    """torch.compile the model."""
    workers: int = Field(default=2, ge=0)
    """Loader threads, or processes with `loader_processes`; 0: samples are made in between."""
    loader_processes: bool = False
    """Load in processes, for a GPU."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of the log."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    validate_every: int = Field(default=500, ge=1)
    """Steps between validations."""
    validate_batches: int = Field(default=4, ge=0)
    """Batches of the validation split, the same ones each time."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept, the newest ones."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints at multiples of so many steps, a multiple of `save_every`, are kept too, for a curve (`ki eval sim
    RUN --every`); 0: none."""
    max_skips: int = Field(default=10, ge=1)
    """Steps in a row that may be skipped for a loss that is not finite."""
    wandb: str | None = None
    """Project of Weights & Biases that metrics are sent to as well. Left out: nothing leaves this machine."""

    @model_validator(mode='after')
    def _kept_are_saved(self) -> Self:
        if self.keep_every % self.save_every:
            raise ValueError(f'keep_every is {self.keep_every}; write a multiple of save_every, {self.save_every}')
        return self

    @model_validator(mode='after')
    def _stages_fit(self) -> Self:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f'stages have the names {", ".join(names)}; give each its own, they name folders')
        if any(stage.vlm for stage in self.stages) and not self.data.vlm:
            raise ValueError('data.vlm names no files, and a stage draws vlm samples; name some, or write vlm: 0')
        return self

    def decay(self, stage: Stage) -> float:
        """Decay of the averaged weights of a stage; 0: none."""
        if stage.ema is not None:
            return stage.ema
        return 0.999 if self.start is None else 0.0

    @model_validator(mode='after')
    def _model_can_be_built(self) -> Self:
        if self.preset is None and self.start is not None:
            return self  # the bundle decides, when it is there
        name = self.preset or 'tiny'
        try:
            RECIPES[self.stages[0].recipe].configure(PRESETS[name], self.model)
        except VlaError as error:
            raise ValueError(f'model does not fit the preset {name}: {error}') from None
        return self


def load_run(path: str | Path, **changes: Any) -> Run:
    """A run from a YAML file; `changes` replace fields at the top.

    Raises:
        TrainingError: no such file, no YAML, or a field that does not exist or does not fit.
    """
    data = read_yaml(path, TrainingError)
    if not isinstance(data, Mapping):
        raise TrainingError(f'{path} holds {shown(data)}; write a mapping of fields, as in config/train/.')
    return Run.parse({**data, **changes}, str(path))
