"""Select an engine: the requested one, or the best available; with a sentence that says why.

With a CUDA device, `auto` prefers a TensorRT engine built for it, then torch with CUDA graphs; without one, exported
ONNX graphs, then torch on the CPU. Where a named engine is not available, the next best runs with a warning; `strict`
raises instead. An engine counts as available once it has computed a chunk at its smallest shape, because libraries,
drivers and compilers fail at first use. Nothing is exported or built here unless `build` is set.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ki_common.errors import first_line
from ki_vla.engine.exported import PRECISIONS, SAID, find_export, read_parity
from ki_vla.engine.fp8_scales import LEAST_CAPABILITY, has_scales, read_scales
from ki_vla.engine.interface import Choice, Engine, example_inputs, one_line_when_out_of_memory
from ki_vla.errors import VlaError
from ki_vla.model.config import ModelConfig
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.serving import Decode
from ki_vla.tokens.actions import ActionTokens

if TYPE_CHECKING:
    from ki_vla.engine.fused import Scales

log = logging.getLogger(__name__)

BACKENDS = ('auto', 'torch', 'onnx', 'tensorrt')
DEVICES = ('auto', 'cpu', 'cuda')


@dataclass(frozen=True)
class EngineRequest:
    """What an engine should be.

    Attributes:
        backend: of `BACKENDS`.
        device: of `DEVICES`; 'auto' takes CUDA where it is.
        precision: 'fp32', 'fp16', 'bf16', 'int8' (ONNX on a CPU); None: bf16 for torch on CUDA, fp32 for torch on a
            CPU, the best exported one for ONNX.
        mode: of `ki_vla.engine.torch.MODES`; None: on CUDA the first of fp8 (if the bundle was exported for it), fused,
            fast and graphs that starts, packed stages on a CPU.
        steps: Euler steps; None: what the bundle recommends, or what the graphs were exported for.
        threads: of ONNX Runtime on a CPU; 0: as many as there are cores.
        build: TensorRT may build a missing engine now, which takes many minutes.
        decode: where actions come from, the action head ('actions') or tokens of the backbone ('tokens'); None: what
            the bundle recommends.
    """

    backend: str = 'auto'
    device: str = 'auto'
    precision: str | None = None
    mode: str | None = None
    steps: int | None = None
    threads: int = 0
    build: bool = False
    decode: Decode | None = None

    def __post_init__(self) -> None:
        """Refuse names that do not exist."""
        from ki_vla.engine.torch import MODES

        allowed = {'backend': BACKENDS, 'device': DEVICES, 'precision': (None, *PRECISIONS), 'mode': (None, *MODES)}
        allowed['decode'] = (None, *get_args(Decode))
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                known = ', '.join(str(each) for each in values if each is not None)
                raise VlaError(f'engine {name}: {getattr(self, name)!r} is unknown; choose one of {known}.')


def open_engine(
    bundle: Bundle | str | Path,
    backend: str = 'auto',
    *,
    strict: bool = False,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Engine:
    """An engine for a bundle. Its `choice` says which one it is and why; so does the log.

    Args:
        bundle: a bundle or its folder.
        backend: of `BACKENDS`.
        strict: raise where the first choice cannot be had, instead of taking the next best.
        progress: called with a line for each step of a TensorRT build.
        **options: the other fields of `EngineRequest`.

    Raises:
        VlaError: nothing fits, or (strict) what was wanted does not; names the reason and the fix.
    """
    try:
        request = EngineRequest(backend, **options)
    except TypeError as error:
        raise VlaError(f'engine: {error}.') from error
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, verify=False)
    from ki_vla.export.tensorrt import has_engine

    reasons: list[str] = []
    exported, built = bool(read_parity(bundle.folder)), has_engine(bundle.folder)
    for kind, device, why in candidates(request, has_cuda(), exported, built):
        tried = modes(request, kind, device, bundle.config, has_scales(bundle.folder))
        for mode in tried:
            wanted = replace(request, mode=mode)
            try:
                engine = _started(bundle, wanted, kind, device, '; '.join([*reasons, why]), strict, progress)
            except VlaError as error:
                if strict and mode == tried[-1]:
                    raise
                name = kind if mode is None else f'{kind} ({mode})'
                log.warning('engine %s on %s cannot be had: %s', name, device, error)
                reasons.append(f'not {name} on {device} ({error})')
                continue
            log.info('engine: %s', engine.choice)
            return engine
    raise VlaError(f'no engine can be opened for {bundle.policy_id}: {"; ".join(reasons)}')


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def modes(
    request: EngineRequest, kind: str, device: str, config: ModelConfig, calibrated: bool = False
) -> list[str | None]:
    """The modes of a backend to try, best first; None: its own default.

    On a GPU torch's stages are fused where the kernels fit, else compiled, which takes minutes at the start, else as
    they are; always inside CUDA graphs. A bundle that was `calibrated` for FP8 runs so where the GPU can. Guided
    continuation is no mode: it costs 2100 launches a step in place of 110.
    """
    if request.mode is not None or kind != 'torch' or device != 'cuda' or config.head != 'expert':
        return [request.mode]
    from ki_vla.engine.fused import why_not
    from ki_vla.engine.kernels import HAS_TRITON

    if not HAS_TRITON:
        return ['graphs']
    fits = not why_not(config) and request.precision in (None, 'bf16')
    quantised = ['fp8'] if calibrated and request.precision is None else []
    return [*quantised, 'fused', 'fast', 'graphs'] if fits else ['fast', 'graphs']


def candidates(request: EngineRequest, cuda: bool, exported: bool, built: bool) -> list[tuple[str, str, str]]:
    """Backend, device and reason, best first, without repetition.

    Args:
        request: what is wanted.
        cuda: whether there is a CUDA device.
        exported: whether the bundle holds ONNX graphs.
        built: whether it holds a TensorRT engine, for whichever machine.
    """
    device = request.device if request.device != 'auto' else ('cuda' if cuda else 'cpu')
    found: list[tuple[str, str, str]] = []
    if request.backend != 'auto':
        found.append((request.backend, 'cuda' if request.backend == 'tensorrt' else device, 'asked for'))
    if device == 'cuda' and cuda:
        if built and request.backend == 'auto':
            found.append(('tensorrt', 'cuda', 'an engine was built for this device'))
        found.append(('torch', 'cuda', 'the fastest without a TensorRT engine'))
    if exported:
        found.append(('onnx', 'cpu', 'exported and checked, and faster than torch on a CPU'))
    found.append(
        ('torch', 'cpu', 'always there' if exported else 'no ONNX graphs in the bundle (ki export makes them)')
    )
    first = {each[:2]: each for each in reversed(found)}
    return [each for each in found if first[each[:2]] is each]


def _started(
    bundle: Bundle,
    request: EngineRequest,
    kind: str,
    device: str,
    why: str,
    strict: bool,
    progress: Callable[[str], None] | None,
) -> Engine:
    """An engine that has computed; what it opened for that stays open."""
    engine: Engine | None = None
    try:
        with one_line_when_out_of_memory(f'opening engine {kind} on {device}'):
            engine = _open(bundle, request, kind, device, why, strict, progress)
            engine.infer(example_inputs(bundle.config, engine.shapes[0]))
    except Exception as error:  # every library has its own types for a device that cannot compute
        if engine is not None:
            engine.close()
        if isinstance(error, VlaError):
            raise
        raise VlaError(
            f'engine {kind} does not start on {device} ({first_line(error)}); check driver and libraries (ki doctor), '
            'or take another backend or device.'
        ) from error
    return engine


def _open(
    bundle: Bundle,
    request: EngineRequest,
    kind: str,
    device: str,
    why: str,
    strict: bool,
    progress: Callable[[str], None] | None,
) -> Engine:
    views = len(bundle.contract.cameras)
    if kind == 'torch':
        return _open_torch(bundle, request, device, why, strict, views)
    if device == 'cuda':
        order = ('bf16', 'fp16', 'fp32')
    else:
        order = ('fp32', 'fp16', 'int8')
    precision = request.precision or next((each for each in order if each in read_parity(bundle.folder)), order[0])
    export = find_export(bundle.folder, bundle.digest, precision)
    decode, tokens = _decoding(bundle, request)
    missing = SAID if tokens is not None else 'plain'
    if missing not in export.kinds:
        raise VlaError(
            f'{export.folder}: has graphs for {", ".join(export.kinds)}, and {missing} is wanted; export again with '
            f'--kinds {",".join([*export.kinds, missing])}.'
        )
    if request.steps not in (None, export.steps) and bundle.config.head != 'parallel' and tokens is None:
        raise VlaError(
            f'{export.folder}: was exported for {export.steps} Euler steps, {request.steps} are wanted; export again '
            f'with --steps {request.steps}.'
        )
    from ki_vla.engine.onnx import PROVIDERS, OnnxRunner

    if kind == 'tensorrt':
        if tokens is not None:
            raise VlaError('backend tensorrt says no tokens; take onnx with device cuda, or torch.')
        from ki_vla.export.tensorrt import open_runner, require_cache

        runner = open_runner(export, require_cache(bundle, export, build=request.build, progress=progress))
    else:
        from ki_vla.export.provider_parity import require_parity

        require_parity(bundle, export, device)
        runner = OnnxRunner(export, device, request.threads, decode=decode)
    choice = Choice(kind, PROVIDERS['tensorrt' if kind == 'tensorrt' else device], device, precision, why)
    return Engine(runner, bundle.config, choice, views, export.kinds, tokens)


def _open_torch(bundle: Bundle, request: EngineRequest, device: str, why: str, strict: bool, views: int) -> Engine:
    from ki_vla.engine.torch import DTYPES, MODES, TorchRunner

    if device == 'cuda' and not has_cuda():
        raise VlaError('torch sees no CUDA device here; take device cpu, or check driver and torch build (ki doctor).')
    precision = request.precision or ('bf16' if device == 'cuda' else 'fp32')
    if precision not in DTYPES:
        raise VlaError(f'backend torch has no precision {precision}; choose one of {", ".join(DTYPES)}.')
    default = 'graphs' if device == 'cuda' else 'packed'
    mode = request.mode or default
    decode, tokens = _decoding(bundle, request)
    if MODES[mode].graphs and device == 'cpu':
        instead = 'compiled' if MODES[mode].compiled else 'packed'
        said = f'engine mode {mode!r}: CUDA graphs need a CUDA device and this engine is for the CPU'
        if strict:
            raise VlaError(f'{said}; take mode {instead!r}, or device cuda.')
        log.warning('%s; mode %r is taken', said, instead)
        mode, why = instead, f'{why}; not mode {mode!r}, which needs a CUDA device'
    scales = _fp8_scales(bundle, request, device) if MODES[mode].fp8 else None
    model = bundle.model(device, DTYPES[precision])
    steps = request.steps or bundle.serving.denoise_steps
    runner = TorchRunner(model, steps, MODES[mode], device, decode=decode, scales=scales)
    precision = 'fp8' if scales is not None else precision
    kinds = bundle.config.denoising_kinds or ('plain',)
    return Engine(runner, bundle.config, Choice('torch', mode, device, precision, why), views, kinds, tokens)


def _fp8_scales(bundle: Bundle, request: EngineRequest, device: str) -> Scales:
    """The scales of a bundle, for a GPU that has FP8.

    Raises:
        VlaError: another precision was asked for, the GPU has no FP8, or the bundle no scales.
    """
    import torch

    if request.precision not in (None, 'bf16'):
        raise VlaError(f'mode fp8 computes in FP8 and bf16; leave precision {request.precision} out.')
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise VlaError(
            f'mode fp8: this GPU (compute capability {capability[0]}.{capability[1]}) has no FP8, which begins with '
            f'{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]}; take mode fused.'
        )
    return read_scales(bundle)


def _decoding(bundle: Bundle, request: EngineRequest) -> tuple[Decode, ActionTokens | None]:
    """Where actions come from, and for tokens what they mean.

    Raises:
        VlaError: the policy has no such actions.
    """
    decode = request.decode or bundle.serving.decode
    if decode == 'tokens':
        if bundle.processor.action_tokens is None:
            raise VlaError(f'decode is tokens, and {bundle.policy_id} has no action tokens; take actions.')
        return decode, bundle.processor.action_tokens
    if bundle.config.head == 'none':
        raise VlaError(f'decode is actions, and {bundle.policy_id} has no action head (model.head none); take tokens.')
    return decode, None
