"""Which engine: the wanted one, or the best there is; and a sentence that says why.

`auto` prefers, with a CUDA device: a TensorRT engine that was built for it, torch with CUDA graphs; without one: ONNX
graphs that were exported and checked, then torch on the CPU. An engine that was asked for by name and cannot be had is
replaced by the next best, with a warning; `strict` raises instead. Nothing is ever exported or built here unless
`build` says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_vla.bundle import Bundle, load_bundle
from ki_vla.engine.exported import PRECISIONS, find_export, read_parity
from ki_vla.engine.interface import Choice, Engine, telling_memory
from ki_vla.errors import VlaError

log = logging.getLogger(__name__)

BACKENDS = ('auto', 'torch', 'onnx', 'tensorrt')
DEVICES = ('auto', 'cpu', 'cuda')
STEPS = 10


@dataclass(frozen=True)
class Wish:
    """What an engine should be.

    Attributes:
        backend: of `BACKENDS`.
        device: of `DEVICES`; 'auto' takes CUDA where it is.
        precision: 'fp32', 'fp16', 'bf16', 'int8' (ONNX on a CPU); None: bf16 for torch on CUDA, fp32 for torch on a
            CPU, the best exported one for ONNX.
        mode: of `ki_vla.engine.torch.MODES`; None: CUDA graphs on CUDA, packed stages on a CPU.
        steps: Euler steps; None: 10, or what the graphs were exported for.
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
        VlaError: nothing fits, or (strict) what was wanted does not; names the reason and the mend.
    """
    try:
        wish = Wish(backend, **wishes)
    except TypeError as error:
        raise VlaError(f'engine: {error}.') from error
    bundle = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, verify=False)
    reasons: list[str] = []
    for kind, device, why in candidates(wish, has_cuda(), bool(read_parity(bundle.folder))):
        try:
            with telling_memory(f'opening engine {kind} on {device}'):
                engine = _open(bundle, wish, kind, device, '; '.join([*reasons, why]), progress)
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


def candidates(wish: Wish, cuda: bool, exported: bool) -> list[tuple[str, str, str]]:
    """Backend, device and reason, best first, without repetition.

    Args:
        wish: what is wanted.
        cuda: whether there is a CUDA device.
        exported: whether the bundle holds ONNX graphs.
    """
    device = wish.device if wish.device != 'auto' else ('cuda' if cuda else 'cpu')
    found: list[tuple[str, str, str]] = []
    if wish.backend != 'auto':
        found.append((wish.backend, 'cuda' if wish.backend == 'tensorrt' else device, 'asked for'))
    if device == 'cuda' and cuda:
        if exported and wish.backend == 'auto':
            found.append(('tensorrt', 'cuda', 'an engine was built for this device'))
        found.append(('torch', 'cuda', 'CUDA graphs are the fastest without a TensorRT engine'))
    if exported:
        found.append(('onnx', 'cpu', 'exported and checked, and faster than torch on a CPU'))
    found.append(
        ('torch', 'cpu', 'always there' if exported else 'no ONNX graphs in the bundle (ki export makes them)')
    )
    seen: set[tuple[str, str]] = set()
    return [each for each in found if each[:2] not in seen and not seen.add(each[:2])]


def _open(
    bundle: Bundle, wish: Wish, kind: str, device: str, why: str, progress: Callable[[str], None] | None
) -> Engine:
    views = len(bundle.contract.cameras)
    if kind == 'torch':
        return _open_torch(bundle, wish, device, why, views)
    if device == 'cuda' or wish.device == 'cuda':
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
        runner = OnnxRunner(export, device, wish.threads)
    choice = Choice(kind, PROVIDERS['tensorrt' if kind == 'tensorrt' else device], device, precision, why)
    return Engine(runner, bundle.config, choice, views, export.kinds)


def _open_torch(bundle: Bundle, wish: Wish, device: str, why: str, views: int) -> Engine:
    from ki_vla.engine.torch import DTYPES, MODES, TorchRunner

    if device == 'cuda' and not has_cuda():
        raise VlaError('torch sees no CUDA device here; take device cpu, or check driver and torch build (ki doctor).')
    precision = wish.precision or ('bf16' if device == 'cuda' else 'fp32')
    if precision not in DTYPES:
        raise VlaError(f'backend torch has no precision {precision}; choose one of {", ".join(DTYPES)}.')
    default = 'graphs' if device == 'cuda' else 'packed'
    mode = wish.mode or (default if bundle.config.head == 'expert' else 'eager')
    model = bundle.model(device, DTYPES[precision])
    runner = TorchRunner(model, wish.steps or STEPS, MODES[mode], device)
    kinds = ('plain', 'trained', 'guided') if bundle.config.head in ('expert', 'shared') else ('plain',)
    return Engine(runner, bundle.config, Choice('torch', mode, device, precision, why), views, kinds)
