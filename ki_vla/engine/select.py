"""Which engine: the wanted one, or the best there is; and a sentence that says why.

`auto` prefers, with a CUDA device: a TensorRT engine that was built for it, torch with CUDA graphs; without one: ONNX
graphs that were exported and checked, then torch on the CPU. An engine that was asked for by name and cannot be had is
replaced by the next best, with a warning; `strict` raises instead. An engine counts as had when it has computed a chunk
at its smallest shape: libraries, drivers and compilers fail at the first use, not at the first look. Nothing is ever
exported or built here unless `build` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_vla.engine.exported import PRECISIONS, find_export, read_parity
from ki_vla.engine.interface import Choice, Engine, example_inputs, first_line, telling_memory
from ki_vla.errors import VlaError
from ki_vla.policy.bundle import Bundle, load_bundle

log = logging.getLogger(__name__)

BACKENDS = ('auto', 'torch', 'onnx', 'tensorrt')
DEVICES = ('auto', 'cpu', 'cuda')


@dataclass(frozen=True)
class Wish:
    """What an engine should be.

    Attributes:
        backend: of `BACKENDS`.
        device: of `DEVICES`; 'auto' takes CUDA where it is.
        precision: 'fp32', 'fp16', 'bf16', 'int8' (ONNX on a CPU); None: bf16 for torch on CUDA, fp32 for torch on a
            CPU, the best exported one for ONNX.
        mode: of `ki_vla.engine.torch.MODES`; None: CUDA graphs on CUDA, packed stages on a CPU.
        steps: Euler steps; None: what the bundle recommends, or what the graphs were exported for.
        threads: of ONNX Runtime on a CPU; 0: as many as there are cores.
        build: TensorRT may build a missing engine now, which takes many minutes.
    """

    backend: str = 'auto'
    device: str = 'auto'
    precision: str | None = None
    mode: str | None = None
    steps: int | None = None
    threads: int = 0
    build: bool = False

    def __post_init__(self) -> None:
        """Refuse names that do not exist."""
        from ki_vla.engine.torch import MODES

        allowed = {'backend': BACKENDS, 'device': DEVICES, 'precision': (None, *PRECISIONS), 'mode': (None, *MODES)}
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
    **wishes: Any,
) -> Engine:
    """An engine for a bundle. Its `choice` says which one it is and why; so does the log.

    Args:
        bundle: a bundle or its folder.
        backend: of `BACKENDS`.
        strict: raise where the first choice cannot be had, instead of taking the next best.
        progress: told what a TensorRT build does.
        **wishes: the other fields of `Wish`.

    Raises:
        VlaError: nothing fits, or (strict) what was wanted does not; names the reason and the fix.
    """
    try:
        wish = Wish(backend, **wishes)
    except TypeError as error:
        raise VlaError(f'engine: {error}.') from error
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, verify=False)
    from ki_vla.export.tensorrt import has_engine

    reasons: list[str] = []
    exported, built = bool(read_parity(bundle.folder)), has_engine(bundle.folder)
    for kind, device, why in candidates(wish, has_cuda(), exported, built):
        try:
            engine = _started(bundle, wish, kind, device, '; '.join([*reasons, why]), strict, progress)
        except VlaError as error:
            if strict:
                raise
            log.warning('engine %s on %s cannot be had: %s', kind, device, error)
            reasons.append(f'not {kind} on {device} ({error})')
            continue
        log.info('engine: %s', engine.choice)
        return engine
    raise VlaError(f'no engine can be opened for {bundle.policy_id}: {"; ".join(reasons)}')


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def candidates(wish: Wish, cuda: bool, exported: bool, built: bool) -> list[tuple[str, str, str]]:
    """Backend, device and reason, best first, without repetition.

    Args:
        wish: what is wanted.
        cuda: whether there is a CUDA device.
        exported: whether the bundle holds ONNX graphs.
        built: whether it holds a TensorRT engine, for whichever machine.
    """
    device = wish.device if wish.device != 'auto' else ('cuda' if cuda else 'cpu')
    found: list[tuple[str, str, str]] = []
    if wish.backend != 'auto':
        found.append((wish.backend, 'cuda' if wish.backend == 'tensorrt' else device, 'asked for'))
    if device == 'cuda' and cuda:
        if built and wish.backend == 'auto':
            found.append(('tensorrt', 'cuda', 'an engine was built for this device'))
        found.append(('torch', 'cuda', 'CUDA graphs are the fastest without a TensorRT engine'))
    if exported:
        found.append(('onnx', 'cpu', 'exported and checked, and faster than torch on a CPU'))
    found.append(
        ('torch', 'cpu', 'always there' if exported else 'no ONNX graphs in the bundle (ki export makes them)')
    )
    first = {each[:2]: each for each in reversed(found)}
    return [each for each in found if first[each[:2]] is each]


def _started(
    bundle: Bundle,
    wish: Wish,
    kind: str,
    device: str,
    why: str,
    strict: bool,
    progress: Callable[[str], None] | None,
) -> Engine:
    """An engine that has computed; what it opened for that stays open."""
    engine: Engine | None = None
    try:
        with telling_memory(f'opening engine {kind} on {device}'):
            engine = _open(bundle, wish, kind, device, why, strict, progress)
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
    wish: Wish,
    kind: str,
    device: str,
    why: str,
    strict: bool,
    progress: Callable[[str], None] | None,
) -> Engine:
    views = len(bundle.contract.cameras)
    if kind == 'torch':
        return _open_torch(bundle, wish, device, why, strict, views)
    if device == 'cuda':
        order = ('bf16', 'fp16', 'fp32')
    else:
        order = ('fp32', 'fp16', 'int8')
    precision = wish.precision or next((each for each in order if each in read_parity(bundle.folder)), order[0])
    export = find_export(bundle.folder, bundle.digest, precision)
    if wish.steps not in (None, export.steps):
        raise VlaError(
            f'{export.folder}: was exported for {export.steps} Euler steps, {wish.steps} are wanted; export again with '
            f'--steps {wish.steps}.'
        )
    from ki_vla.engine.onnx import PROVIDERS, OnnxRunner

    if kind == 'tensorrt':
        from ki_vla.export.tensorrt import open_runner, require_cache

        runner = open_runner(export, require_cache(bundle, export, build=wish.build, progress=progress))
    else:
        from ki_vla.export.provider_parity import require_parity

        require_parity(bundle, export, device)
        runner = OnnxRunner(export, device, wish.threads)
    choice = Choice(kind, PROVIDERS['tensorrt' if kind == 'tensorrt' else device], device, precision, why)
    return Engine(runner, bundle.config, choice, views, export.kinds)


def _open_torch(bundle: Bundle, wish: Wish, device: str, why: str, strict: bool, views: int) -> Engine:
    from ki_vla.engine.torch import DTYPES, MODES, TorchRunner

    if device == 'cuda' and not has_cuda():
        raise VlaError('torch sees no CUDA device here; take device cpu, or check driver and torch build (ki doctor).')
    precision = wish.precision or ('bf16' if device == 'cuda' else 'fp32')
    if precision not in DTYPES:
        raise VlaError(f'backend torch has no precision {precision}; choose one of {", ".join(DTYPES)}.')
    default = 'graphs' if device == 'cuda' else 'packed'
    mode = wish.mode or (default if bundle.config.head == 'expert' else 'eager')
    if MODES[mode].graphs and device == 'cpu':
        instead = 'compiled' if MODES[mode].compiled else 'packed'
        said = f'engine mode {mode!r}: CUDA graphs need a CUDA device and this engine is for the CPU'
        if strict:
            raise VlaError(f'{said}; take mode {instead!r}, or device cuda.')
        log.warning('%s; mode %r is taken', said, instead)
        mode, why = instead, f'{why}; not mode {mode!r}, which needs a CUDA device'
    model = bundle.model(device, DTYPES[precision])
    runner = TorchRunner(model, wish.steps or bundle.serving.denoise_steps, MODES[mode], device)
    kinds = ('plain', 'trained', 'guided') if bundle.config.head in ('expert', 'shared') else ('plain',)
    return Engine(runner, bundle.config, Choice('torch', mode, device, precision, why), views, kinds)
