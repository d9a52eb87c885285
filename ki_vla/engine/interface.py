"""The interface of every engine: numpy in, numpy out, static shapes, seeded noise, measured times.

An `Engine` checks inputs, pads them to a static shape, draws noise and measures time; a `Runner` behind it (torch or
ONNX Runtime) computes. Every backend gets the same noise, so the same observation gives the same chunk within the
tolerance of the precision.

Shape legend: V views, L prompt slots, H horizon, A action dims, P rows left of the old chunk.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from ki_vla.errors import VlaError
from ki_vla.model.config import ModelConfig
from ki_vla.policy.model_inputs import ModelInputs
from ki_vla.tokens.actions import ActionTokens

PROMPT_BUCKETS = (48, 96, 200)
CARRY_MODES = ('guided', 'trained')
WARM_UPS = 3


class Shape(NamedTuple):
    """What is static in an engine: number of views, prompt slots."""

    views: int
    prompt: int


@dataclass(frozen=True)
class Choice:
    """Which engine was taken, where it runs, and why; what the log and `ki doctor` show."""

    backend: str
    mode: str
    device: str
    precision: str
    reason: str

    def __str__(self) -> str:
        return f'{self.backend} ({self.mode}) on {self.device}, {self.precision}: {self.reason}'


@dataclass(frozen=True, eq=False)
class Carry:
    """The rest of the chunk that is being executed, for a chunk that continues it (see `ki_vla.policy.rtc`).

    Attributes:
        previous_PA: normalised; row 0 is the new chunk's first step (`Processor.carried`).
        delay: steps that will have been executed when the new chunk is there.
        end: first step without weight ('guided' only).
        mode: 'guided' (any model) or 'trained' (a model trained with delays).
        schedule: how the weights fall between the two ('guided' only).
    """

    previous_PA: np.ndarray
    delay: int
    end: int = 0
    mode: str = 'guided'
    schedule: str = 'exp'


class Carried(NamedTuple):
    """A `Carry` at full length: kind 'trained' with given_H (bool), or 'guided' with weights_H (float32)."""

    kind: str
    previous_HA: np.ndarray
    share_H: np.ndarray


Choose = Callable[[np.ndarray], int | None]  # logits [W], float32 -> the next id


class Runner(Protocol):
    """What stands behind an engine. All calls come from one thread.

    `shares_buffers`: a prefix of a shape is overwritten by the next one of that shape.
    `times_ms`: of the last call, by stage.
    """

    shares_buffers: bool
    times_ms: dict[str, float]

    def prefill(self, shape: Shape, inputs: ModelInputs) -> Any:
        """Padded inputs -> whatever `denoise` of the same runner takes."""
        ...

    def denoise(self, shape: Shape, prefix: Any, noise_HA: np.ndarray, carried: Carried | None) -> np.ndarray:
        """Noise -> normalised actions, float32 [H, A]."""
        ...

    def say(self, shape: Shape, prefix: Any, choose: Choose) -> None:
        """Says tokens after a prefix: `choose` is given the logits [W] of each and gives its id, or None to end.

        For a runner that was made to say tokens; one for continuous actions is never asked.
        """
        ...

    def close(self) -> None:
        """Frees memory, sessions and graphs."""
        ...


@dataclass(eq=False)
class PrefillHandle:
    """A prefilled observation; belongs to the engine that made it."""

    shape: Shape
    payload: Any
    owner: Engine
    number: int = field(default=0)


class Engine:
    """A model ready to run. Use it as a context manager, or call `close`; use it from one thread.

    Args:
        runner: who computes.
        config: the model's structure.
        choice: what was chosen and why.
        views: number of camera views that are fed.
        kinds: which ways of denoising the runner can do: 'plain', 'guided', 'trained'.
        tokens: for a runner that says actions as tokens: what they mean, and what may follow what.
    """

    def __init__(
        self,
        runner: Runner,
        config: ModelConfig,
        choice: Choice,
        views: int | None = None,
        kinds: tuple[str, ...] = ('plain', 'guided', 'trained'),
        tokens: ActionTokens | None = None,
    ) -> None:
        self.config, self.choice, self.tokens = config, choice, tokens
        self.kinds = kinds if tokens is None else ('plain',)
        self.views = config.views if views is None else views
        self.buckets = prompt_buckets(config)
        self.times_ms: dict[str, float] = {}
        self._runner: Runner | None = runner
        self._latest: dict[Shape, int] = {}
        self._count = 0

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shapes(self) -> list[Shape]:
        """Every static shape, smallest first."""
        return [Shape(self.views, bucket) for bucket in self.buckets]

    def prefill(self, inputs: ModelInputs) -> PrefillHandle:
        """Read an observation: images, prompt, state (as `Processor.inputs` gives them).

        Raises:
            VlaError: a shape or dtype that does not fit the model, more prompt tokens than it takes, out of memory.
        """
        runner = self._open()
        inputs, shape = self._padded(inputs)
        begin = time.perf_counter()
        with one_line_when_out_of_memory('reading an observation'):
            payload = runner.prefill(shape, inputs)
        self.times_ms = {**runner.times_ms, 'prefill': 1e3 * (time.perf_counter() - begin)}
        self._count += 1
        self._latest[shape] = self._count
        return PrefillHandle(shape, payload, self, self._count)

    def denoise(
        self, prefix: PrefillHandle, noise_HA: np.ndarray | None = None, *, seed: int = 0, carry: Carry | None = None
    ) -> np.ndarray:
        """Sample a chunk: normalised actions, float32 [H, A].

        Args:
            prefix: from `prefill` of this engine.
            noise_HA: what to start from; unless given, drawn with `seed`, the same for every backend.
            seed: see there.
            carry: the chunk that is to be continued.

        An engine that says tokens (`tokens` is not None) draws nothing: it takes the likeliest of those that can
        follow, and its actions are scaled as action tokens are.

        Raises:
            VlaError: noise or carry of the wrong shape, a prefix that is not this engine's or overwritten, a way of
                denoising that this engine lacks, out of memory, or a result that is not finite.
        """
        runner = self._open()
        if prefix.owner is not self:
            raise VlaError('this prefix was made by another engine; prefill with the one that denoises.')
        if runner.shares_buffers and self._latest.get(prefix.shape) != prefix.number:
            raise VlaError('this prefix was overwritten by a later prefill; denoise before the next one.')
        carried = None if carry is None else self._carried(carry)
        if carried is not None and carried.kind not in self.kinds:
            raise VlaError(
                f'carry.mode: this engine cannot continue a chunk the {carried.kind!r} way; it has '
                f'{", ".join(self.kinds)}. Export again with that kind, or take backend torch.'
            )
        noise = self._noise(noise_HA, seed)
        begin = time.perf_counter()
        with one_line_when_out_of_memory('sampling a chunk'):
            if self.tokens is None:
                actions_HA = runner.denoise(prefix.shape, prefix.payload, noise, carried)
            else:
                actions_HA = self._said(runner, prefix, self.tokens)
        # The runner may know the times of a prefill only now that the device has answered.
        self.times_ms |= {**runner.times_ms, 'denoise': 1e3 * (time.perf_counter() - begin)}
        if not np.isfinite(actions_HA).all():
            raise VlaError(
                f'the engine {self.choice.backend} ({self.choice.precision}) gave actions that are not finite; '
                'check the inputs, or use fp32 or bf16 weights.'
            )
        return actions_HA

    def infer(
        self,
        inputs: ModelInputs,
        noise_HA: np.ndarray | None = None,
        *,
        seed: int = 0,
        carry: Carry | None = None,
    ) -> np.ndarray:
        """`prefill` and `denoise` in one."""
        return self.denoise(self.prefill(inputs), noise_HA, seed=seed, carry=carry)

    def warm_up(
        self, kinds: tuple[str, ...] = ('plain',), progress: Callable[[str], None] | None = None, rounds: int = WARM_UPS
    ) -> None:
        """Run every static shape often enough that the next call is as fast as any (compiling, capturing, allocating).

        Args:
            kinds: which ways of denoising.
            progress: called with one line for each shape.
            rounds: runs of each.
        """
        for shape in self.shapes:
            begin = time.perf_counter()
            for kind in kinds:
                for _ in range(rounds):
                    self.infer(example_inputs(self.config, shape), carry=self._example_carry(kind))
            if progress is not None:
                progress(
                    f'{self.choice.backend}: {shape.views} views, {shape.prompt} prompt slots warm after '
                    f'{time.perf_counter() - begin:.1f} s'
                )

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.close()

    def _open(self) -> Runner:
        if self._runner is None:
            raise VlaError('this engine is closed; open a new one.')
        return self._runner

    def _said(self, runner: Runner, prefix: PrefillHandle, tokens: ActionTokens) -> np.ndarray:
        """The chunk that the model says: the likeliest token at every step, of those that lead to a whole chunk."""
        stream, said = tokens.stream(), 0

        def choose(logits_W: np.ndarray) -> int | None:
            nonlocal said
            ids = stream.allowed(self.config.max_targets - said)
            stream.push(int(ids[np.argmax(logits_W[ids])]))
            if stream.complete:
                return None
            said += 1
            if said > self.config.max_targets:
                raise VlaError(
                    f'the policy did not finish its chunk within {self.config.max_targets} tokens (model.max_targets); '
                    'it needs more training, or a codec with more tokens.'
                )
            return stream.last

        runner.say(prefix.shape, prefix.payload, choose)
        chunk_HN = stream.chunk()
        self.times_ms['tokens'] = float(said)
        return np.pad(chunk_HN, ((0, 0), (0, self.config.action_dim - chunk_HN.shape[1]))).astype(np.float32)

    def _padded(self, inputs: ModelInputs) -> tuple[ModelInputs, Shape]:
        """Inputs at the smallest static shape that holds them."""
        config, pixels = self.config, self.config.vision.image_size
        length = len(inputs.prompt_L)
        wanted = {
            'images_VHWC': ((self.views, pixels, pixels, 3), np.uint8),
            'image_mask_V': ((self.views,), np.bool_),
            'prompt_L': ((length,), np.int64),
            'prompt_mask_L': ((length,), np.bool_),
            'state_S': ((config.state_dim,), np.float32),
        }
        for name, (shape, dtype) in wanted.items():
            value = getattr(inputs, name)
            if value.shape != shape or value.dtype != dtype:
                raise VlaError(
                    f'inputs.{name}: {value.dtype} {value.shape}; this engine takes {np.dtype(dtype)} {shape}. '
                    "Make inputs with the bundle's own processor."
                )
        bucket = next((size for size in self.buckets if size >= length), None)
        if bucket is None:
            raise VlaError(
                f'inputs.prompt_L: {length} tokens, the largest prompt of this engine is {self.buckets[-1]}; '
                'shorten the instruction.'
            )
        if length and not 0 <= int(inputs.prompt_L.min()) <= int(inputs.prompt_L.max()) < config.vocab_size:
            raise VlaError(f'inputs.prompt_L: ids must lie in 0..{config.vocab_size - 1}.')
        if not np.isfinite(inputs.state_S).all():
            raise VlaError('inputs.state_S: a value is not finite; drop that observation.')
        room = (0, bucket - length)
        padded = replace(
            inputs, prompt_L=np.pad(inputs.prompt_L, room), prompt_mask_L=np.pad(inputs.prompt_mask_L, room)
        )
        return padded, Shape(self.views, bucket)

    def _noise(self, noise_HA: np.ndarray | None, seed: int) -> np.ndarray:
        shape = (self.config.horizon, self.config.action_dim)
        if noise_HA is None:
            return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
        if noise_HA.shape != shape:
            raise VlaError(f'noise: shape {noise_HA.shape}; this model needs {shape}.')
        return np.ascontiguousarray(noise_HA, dtype=np.float32)

    def _carried(self, carry: Carry) -> Carried:
        """The old chunk at full length, and how much each step should agree with it."""
        import torch

        from ki_vla.policy import rtc

        H, A = self.config.horizon, self.config.action_dim
        if carry.mode not in CARRY_MODES:
            raise VlaError(f'carry.mode: {carry.mode!r} is unknown; choose one of {", ".join(CARRY_MODES)}.')
        if carry.mode == 'trained' and not 0 <= carry.delay < H:
            raise VlaError(f'carry.delay: {carry.delay} must be at least 0 and below the horizon {H}.')
        needed = carry.delay if carry.mode == 'trained' else carry.end
        previous = torch.as_tensor(np.asarray(carry.previous_PA, dtype=np.float32))
        if previous.ndim != 2:
            raise VlaError(f'carry.previous_PA: shape {tuple(previous.shape)}; (at most {H}, {A}) is needed.')
        previous_HA = rtc.at_full_length(previous[None], torch.zeros(1, H, A), needed)[0].numpy()
        if carry.mode == 'trained':
            given = rtc.given_steps(carry.delay, len(previous), H, self.config.steps_per_token)
            return Carried('trained', previous_HA, np.arange(H) < given)
        weights = rtc.prefix_weights(H, carry.delay, carry.end, carry.schedule)
        return Carried('guided', previous_HA, weights.numpy().astype(np.float32))

    def _example_carry(self, kind: str) -> Carry | None:
        if kind == 'plain':
            return None
        previous = np.zeros((self.config.horizon, self.config.action_dim), dtype=np.float32)
        return Carry(previous, delay=1, end=max(1, self.config.horizon // 2), mode=kind)


def prompt_buckets(config: ModelConfig) -> list[int]:
    """The prompt lengths that are compiled for: 48, 96 and 200 as far as the model takes them, and its own longest."""
    return [size for size in PROMPT_BUCKETS if size < config.max_prompt] + [config.max_prompt]


def example_inputs(config: ModelConfig, shape: Shape, seed: int = 0) -> ModelInputs:
    """Seeded noise in the shape of an observation, a few prompt slots empty."""
    rng = np.random.default_rng(seed)
    pixels = config.vision.image_size
    used = max(1, shape.prompt - 5)
    return ModelInputs(
        images_VHWC=rng.integers(0, 256, (shape.views, pixels, pixels, 3), dtype=np.uint8),
        image_mask_V=np.ones(shape.views, dtype=bool),
        prompt_L=np.where(np.arange(shape.prompt) < used, rng.integers(0, config.vocab_size, shape.prompt), 0),
        prompt_mask_L=np.arange(shape.prompt) < used,
        state_S=rng.standard_normal(config.state_dim, dtype=np.float32),
    )


@contextlib.contextmanager
def one_line_when_out_of_memory(doing: str) -> Iterator[None]:
    """Turn every library's way of running out of memory into one sentence."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise VlaError(
            f'out of memory while {doing}: use a smaller precision (fp16, bf16), fewer views or a shorter prompt, or '
            'end other programs on this device.'
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether numpy, torch or ONNX Runtime say that memory is used up."""
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError':
        return True
    text = str(error).lower()
    if (
        'using this package' in text
    ):  # ONNX Runtime "can't allocate memory" either on a device that it was not built for
        return False
    return any(
        said in text for said in ("can't allocate memory", 'out of memory', 'failed to allocate memory', 'bad_alloc')
    )
