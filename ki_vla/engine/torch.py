"""The torch runner and its modes.

    eager      `KiVla` itself, with every head; the reference of all other modes
    packed     the stages of `stages.py`
    compiled   packed stages through torch.compile
    graphs     packed stages, one CUDA graph for the prefix and one for the loop
    fast       compiled stages inside those graphs
    fused      the stages of `fused.py` inside those graphs; the default on a GPU where they fit the model
    fp8        the same with vision tower and backbone in FP8, for a bundle that `ki export` found good enough for it

Shape legend: H horizon, A action dims.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ki_vla.engine import kernels
from ki_vla.engine.fused import FusedActionStage, FusedPrefixStage, FusedVisionStage, Scales, quantise, why_not
from ki_vla.engine.graphs import Capture, CapturedFunction, Function, capture_cuda
from ki_vla.engine.heads import TokenPrefixStage, TokenStage, action_stage
from ki_vla.engine.interface import Carried, Choose, Shape
from ki_vla.engine.packing import PLAIN, Fusions
from ki_vla.engine.stages import Cached, Denoiser, Loop, PrefixStage, Step, VisionStage, pure, split_carried
from ki_vla.errors import VlaError
from ki_vla.model import flow
from ki_vla.model.kivla import KiVla, Prefix
from ki_vla.policy import rtc
from ki_vla.policy.model_inputs import ModelInputs
from ki_vla.policy.serving import Decode

INPUTS = ('images_VHWC', 'image_mask_V', 'prompt_L', 'prompt_mask_L', 'state_S')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass(frozen=True)
class TorchMode:
    """How a model is run.

    Attributes:
        fusions: which changes are made to its layers; None runs `KiVla` itself.
        compiled: through torch.compile.
        graphs: as CUDA graphs.
        attend_prefix, attend_action: how these packed stages attend, see `stages.ATTENTIONS`.
        fused: the stages of `fused.py` in place of packed ones.
        fp8: vision tower and backbone of these in FP8 (`fused.quantise`).
    """

    fusions: Fusions | None = field(default_factory=Fusions)
    compiled: bool = False
    graphs: bool = False
    attend_prefix: str = 'matmul'
    attend_action: str = 'matmul'
    fused: bool = False
    fp8: bool = False

    def __post_init__(self) -> None:
        """Graphs and compiling are for stages."""
        if self.fusions is None and (self.compiled or self.graphs):
            raise VlaError('mode: compiling and CUDA graphs need packed stages (fusions), not the model as it is.')


MODES = {
    'eager': TorchMode(fusions=None),
    'packed': TorchMode(),
    'compiled': TorchMode(compiled=True),
    'graphs': TorchMode(graphs=True),
    'fast': TorchMode(compiled=True, graphs=True),
    'fused': TorchMode(graphs=True, fused=True),
    'fp8': TorchMode(graphs=True, fused=True, fp8=True),
}


class StageTimer:
    """Times of stages. On a CUDA device marks are put into its queue, and read when the result has arrived."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == 'cuda'
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Forget what was measured and begin."""
        self._marks = [('', self._now())]

    def mark(self, stage: str) -> None:
        """The stage ends here."""
        self._marks.append((stage, self._now()))

    def read_ms(self) -> dict[str, float]:
        """Milliseconds by stage; call it when the device has caught up."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return {stage: begin.elapsed_time(end) for (_, begin), (stage, end) in pairs}
        return {stage: 1e3 * (end - begin) for (_, begin), (stage, end) in pairs}

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class TorchRunner:
    """A model on one device in one mode.

    Args:
        model: its weights are moved to `device` and `dtype` and frozen.
        steps: Euler steps.
        mode: see `TorchMode`.
        device: 'cpu', 'cuda', 'cuda:1' ...
        dtype: of weights and activations; norms, softmax and the integration stay in float32.
        capture: how graphs are recorded.
        decode: 'actions', or 'tokens' for a runner that only says tokens; these are said one stage call after the
            other, in whatever mode.
        scales: of FP8, see `fused.calibrate`.
    """

    def __init__(
        self,
        model: KiVla,
        steps: int,
        mode: TorchMode,
        device: torch.device | str = 'cpu',
        dtype: torch.dtype | None = None,
        capture: Capture = capture_cuda,
        decode: Decode = 'actions',
        scales: Scales | None = None,
    ) -> None:
        self.device, self.mode = torch.device(device), mode
        self.shares_buffers = mode.graphs and decode == 'actions'
        self.times_ms: dict[str, float] = {}
        self._clock, self._capture = StageTimer(self.device), capture
        model = model.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self._eager: _EagerModel | None = None
        self._stages: _Stages | None = None
        self._token_model: _TokenModel | None = None
        self._loops: dict[Any, Function] = {}
        self._graphs: dict[Any, CapturedFunction] = {}
        self._pinned: dict[Any, Tensor] = {}
        self._sent: torch.cuda.Event | None = None  # after the last prefill's copies
        if decode == 'tokens':
            with torch.no_grad():
                self._token_model = _TokenModel(model, mode)
            return
        if mode.fusions is None:
            self._eager = _EagerModel(model, steps)
            return
        self._stages = _stages_of(model, steps, mode, self.device)
        if mode.fp8:
            self._quantise(self._stages, scales)
        self.steps = self._stages.action.steps

    @torch.no_grad()
    def prefill(self, shape: Shape, inputs: ModelInputs) -> Any:
        """See `interface.Runner`."""
        if self._sent is not None:
            # The last prefill may still be fetching from the buffers that are about to be written.
            self._sent.synchronize()
        self._clock.start()
        tensors = [self._input(name, getattr(inputs, name)) for name in INPUTS]
        self._clock.mark('copy')
        if self._token_model is not None:
            found: Any = self._token_model.prefill(self._clock, *tensors)
        elif self._eager is not None:
            found = self._eager.prefill(self._clock, *tensors)
        elif self.mode.graphs:
            found = self._graph(('prefix', shape), self._whole_prefix, tensors)(*tensors)
            self._clock.mark('prefix')
        else:
            stages = self._packed
            tokens_VND = stages.vision(tensors[0])
            self._clock.mark('vision')
            found = stages.prefix(tokens_VND, *tensors[1:])
            self._clock.mark('prefix')
        if self.device.type == 'cuda':
            self._sent = torch.cuda.Event()
            self._sent.record()
        else:
            self.times_ms = self._clock.read_ms()
        return found

    @torch.no_grad()
    def denoise(self, shape: Shape, prefix: Any, noise_HA: np.ndarray, carried: Carried | None) -> np.ndarray:
        """See `interface.Runner`."""
        kind = 'plain' if carried is None else carried.kind
        given = {'noise': noise_HA}
        if carried is not None:
            given |= {'previous': carried.previous_HA, kind: carried.share_H}
        tensors = [self._input(name, value) for name, value in given.items()]
        if self._eager is not None:
            actions = self._eager.denoise(prefix, kind, *tensors)
        else:
            cached = self._read_by(kind, [each for each in prefix if each is not None])
            if self.mode.graphs:
                shared = range(len(tensors), len(tensors) + len(cached))
                key = ('loop', shape, kind)
                loop = partial(self._loop_for, shape, kind)
                actions = self._graph(key, loop(tensors, cached), [*tensors, *cached], shared)(*tensors)
            else:
                actions = self._loop_for(shape, kind, tensors, cached)(*tensors, *cached)
        self._clock.mark('denoise')
        result = actions.float().cpu().numpy()
        self.times_ms = self._clock.read_ms()
        # A graph's output is overwritten by its next replay, and on a CPU numpy would look at that very buffer.
        return result.copy() if self.device.type == 'cpu' else result

    @torch.no_grad()
    def say(self, shape: Shape, prefix: Any, choose: Choose) -> None:
        """See `interface.Runner`."""
        if self._token_model is None:
            raise VlaError('this engine was not opened to say tokens (decode tokens); open another.')
        self._token_model.say(prefix, choose)
        self._clock.mark('tokens')
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        self.times_ms = self._clock.read_ms()

    def close(self) -> None:
        """Drop weights and graphs and give their memory back."""
        self._graphs.clear()
        self._loops.clear()
        self._pinned.clear()
        self._eager = self._stages = self._token_model = None
        if self.device.type == 'cuda':
            torch.cuda.empty_cache()

    @property
    def _packed(self) -> _Stages:
        if self._stages is None:
            raise VlaError('this engine is closed; open a new one.')
        return self._stages

    def _input(self, name: str, value: np.ndarray) -> Tensor:
        """A numpy array as a tensor on the device; in pinned memory still, where a graph fetches it itself."""
        if self.device.type != 'cuda':
            return torch.from_numpy(np.ascontiguousarray(value))
        key = (name, value.shape)
        if key not in self._pinned:
            self._pinned[key] = torch.from_numpy(np.array(value)).pin_memory()
        # By numpy: a copy by torch may wake its thread pool, which costs milliseconds now and then.
        np.copyto(self._pinned[key].numpy(), value)
        pinned = self._pinned[key]
        return pinned if self.mode.graphs else pinned.to(self.device, non_blocking=True)

    def _whole_prefix(self, images: Tensor, *rest: Tensor) -> Cached:
        stages = self._packed
        found: Cached = stages.prefix(stages.vision(images), *rest)
        return found

    def _graph(self, key: Any, function: Function, examples: list[Tensor], shared: Any = ()) -> CapturedFunction:
        if key not in self._graphs:
            self._graphs[key] = CapturedFunction(function, examples, tuple(shared), self._capture, self.device)
        return self._graphs[key]

    def _quantise(self, stages: _Stages, scales: Scales | None) -> None:
        if not (isinstance(stages.vision, FusedVisionStage) and isinstance(stages.prefix, FusedPrefixStage)):
            raise VlaError('mode: FP8 is for fused stages; add fused.')
        if scales is None:
            raise VlaError('mode: FP8 needs scales; find them with fused.calibrate.')
        quantise(stages.vision, stages.prefix, scales)

    def _read_by(self, kind: str, cached: list[Tensor]) -> list[Tensor]:
        """What a kind of denoising reads: guided is never fused, and wants keys and values of the prefix alone."""
        if self._packed.fused is None or kind != 'guided':
            return cached
        horizon = len(cached[2])
        return [each[:, :-horizon] for each in cached[:2]] + cached[2:]

    def _loop_for(self, shape: Shape, kind: str, tensors: list[Tensor], cached: list[Tensor]) -> Function:
        """All steps of one kind as a function of tensors."""
        # The written-out backward pass is made for one shape.
        key = (kind, shape if kind == 'guided' else None)
        if key not in self._loops and self._packed.fused is not None and kind != 'guided':
            self._loops[key] = partial(_fused_loop, self._packed.fused, kind)
        if key not in self._loops:
            by_step = self.mode.compiled or (kind == 'guided' and self.mode.graphs)
            whole = Loop(self._packed.action, kind)
            self._loops[key] = self._stepped(kind, tensors, cached) if by_step else whole
        return self._loops[key]

    def _stepped(self, kind: str, tensors: list[Tensor], cached: list[Tensor]) -> Function:
        """All steps of one kind, each the same function: compiling or tracing the whole loop would take minutes."""
        rows = [torch.full((1,), row, dtype=torch.int64, device=self.device) for row in range(self.steps)]
        step: Any = Step(self._packed.action, kind)
        if kind == 'guided':
            noise, *carried = (each.to(self.device) for each in tensors)
            step = pure(step, (noise, rows[0], *carried, *cached))
        step = _compiled(step) if self.mode.compiled else step

        def loop(x_HA: Tensor, *rest: Tensor) -> Tensor:
            for row in rows:
                x_HA = step(x_HA, row, *rest)
            return x_HA

        return loop


@dataclass(frozen=True, eq=False)
class _Stages:
    """The stages: images -> tokens; tokens, prompt and state -> `Cached`; the expert, packed and perhaps fused."""

    vision: Function
    prefix: Function
    action: Denoiser
    fused: FusedActionStage | None = None


@torch.no_grad()
def _stages_of(model: KiVla, steps: int, mode: TorchMode, device: torch.device) -> _Stages:
    assert mode.fusions is not None
    action = action_stage(model, steps, mode.fusions, mode.attend_action)
    if mode.fused:
        check_fused(model, device)
        return _Stages(FusedVisionStage(model), FusedPrefixStage(model), action, FusedActionStage(model, steps))
    vision: Function = VisionStage(model, mode.fusions)
    prefix: Function = PrefixStage(model, mode.fusions, mode.attend_prefix)
    if mode.compiled:
        vision, prefix = _compiled(vision), _compiled(prefix)
    return _Stages(vision, prefix, action)


def check_fused(model: KiVla, device: torch.device) -> None:
    """Refuse what fused kernels cannot run.

    Raises:
        VlaError: the model's structure or precision, or Triton is missing on a GPU.
    """
    reason = why_not(model.config)
    if not reason and device.type == 'cuda':
        if not kernels.HAS_TRITON:
            reason = 'Triton is not installed (pip install triton)'
        elif model.embed.weight.dtype != torch.bfloat16:
            reason = 'fused kernels compute in bf16 on a GPU'
    if reason:
        raise VlaError(f"mode 'fused': {reason}; take mode 'fast' or 'graphs'.")


def _fused_loop(stage: FusedActionStage, kind: str, noise: Tensor, *rest: Tensor) -> Tensor:
    carried, cached = split_carried(kind, rest)
    actions: Tensor = stage(cached, noise, *carried)
    return actions


class _TokenModel:
    """Says tokens one by one from a cache of fixed size."""

    def __init__(self, model: KiVla, mode: TorchMode) -> None:
        fusions = PLAIN if mode.fusions is None else mode.fusions
        self._vision = VisionStage(model, fusions)
        self._prefix = TokenPrefixStage(model, fusions, mode.attend_prefix)
        self._token = TokenStage(model, fusions, mode.attend_action)

    def prefill(self, clock: StageTimer, images: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        device = self._prefix.embed.weight.device
        tokens_VND = self._vision(images.to(device))
        clock.mark('vision')
        found: tuple[Tensor, ...] = self._prefix(tokens_VND, *(each.to(device) for each in rest))
        clock.mark('prefix')
        return found

    def say(self, prefix: tuple[Tensor, ...], choose: Choose) -> None:
        logits_W, k, v, bias_1C, length_1 = prefix
        index = 0
        while (token := choose(logits_W.float().cpu().numpy())) is not None:
            token_1, index_1 = (torch.tensor([each], device=k.device) for each in (token, index))
            logits_W, k, v = self._token(token_1, index_1, k, v, bias_1C, length_1)
            index += 1


class _EagerModel:
    """`KiVla` itself behind the same calls."""

    def __init__(self, model: KiVla, steps: int) -> None:
        if model.config.head == 'none':
            raise VlaError("model.head 'none' has no continuous actions; it says them as tokens (decode tokens).")
        self._model, self._steps = model, steps

    def prefill(
        self, clock: StageTimer, images: Tensor, image_mask: Tensor, prompt: Tensor, prompt_mask: Tensor, state: Tensor
    ) -> Prefix:
        tokens = self._model.encode(images.permute(0, 3, 1, 2)[None])
        clock.mark('vision')
        found = self._model.prefix(tokens, image_mask[None], prompt[None], prompt_mask[None], state[None])
        clock.mark('prefix')
        return found

    def denoise(self, prefix: Prefix, kind: str, noise: Tensor, *carried: Tensor) -> Tensor:
        model, noise = self._model, noise[None]
        if model.config.head == 'parallel':
            if kind != 'plain':
                raise VlaError("carry: head 'parallel' does not sample, so it cannot continue a chunk.")
            return model.parallel_actions(prefix)[0]
        if kind == 'plain':
            return model.denoise(prefix, noise, self._steps)[0]
        previous, share = carried
        if kind == 'trained':
            delay = int(share.sum())
            return rtc.denoise_trained(model.field_at(prefix), noise, previous[None], delay, self._steps)[0]
        field_at = rtc.guide(model.field_at(prefix), previous[None], share[None])
        return flow.euler(field_at, noise, self._steps)[0]


def _compiled(function: Any) -> Any:
    """Through torch.compile, one version a shape."""
    return torch.compile(function, dynamic=False, fullgraph=True)
