"""TensorRT engines, built by ONNX Runtime's TensorRT provider from exported graphs and kept in the bundle.

    engines/KEY/engine.json    for which GPU, TensorRT, ONNX Runtime, bundle and graphs; how close to torch; every file
    engines/KEY/...            what the provider keeps: engines and timings

To open an engine runs code from it. So every file is compared with its sha256 before the provider sees the folder, and
a file that nobody wrote down is refused. Whoever can write the table as well can run code: take bundles with engines
only from whom you trust, or remove `engines/` and build them yourself.

An engine fits one kind of GPU and one version of TensorRT. Building takes minutes, so it happens in `ki export --to
tensorrt` and never at the start of a node, unless that is asked for. Written to the documented options of the
provider (and, where those are silent, to its source); NOT RUN on a GPU so far.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ki_common.files import atomic_folder, read_json, sha256_of
from ki_vla.engine.exported import PARITY, Export, check_file
from ki_vla.engine.interface import Shape, example_inputs, one_line_when_out_of_memory, prompt_buckets
from ki_vla.engine.onnx import OnnxRunner, check_provider
from ki_vla.errors import VlaError
from ki_vla.export import parity
from ki_vla.export.source import of_bundle
from ki_vla.policy.bundle import Bundle

FOLDER, TABLE = 'engines', 'engine.json'
TIMINGS = '.timing'  # of single layers: the provider goes on writing these


@dataclass(frozen=True)
class Target:
    """What an engine is built for; it fits nothing else."""

    gpu: str
    tensorrt: str
    onnxruntime: str
    bundle: str
    graphs: str

    @property
    def key(self) -> str:
        """A folder name for it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def this_machine() -> tuple[str, str, str]:
    """GPU (name and compute capability), TensorRT and ONNX Runtime.

    Raises:
        VlaError: there is no GPU, or no TensorRT.
    """
    import torch

    check_provider('tensorrt')
    if not torch.cuda.is_available():
        raise VlaError('TensorRT needs an NVIDIA GPU and torch sees none; check the driver (nvidia-smi).')
    major, minor = torch.cuda.get_device_capability()
    try:
        return f'{torch.cuda.get_device_name()} sm_{major}{minor}', version('tensorrt'), version('onnxruntime-gpu')
    except PackageNotFoundError as error:
        raise VlaError(f'{error.name} is not installed; run: make setup ACCELERATOR=gpu') from error


def target_of(bundle: Bundle, export: Export, machine: tuple[str, str, str]) -> Target:
    """The target for a bundle's graphs on a machine."""
    graphs = hashlib.sha256()
    for path in sorted(export.folder.glob('*.onnx')):
        graphs.update(f'{path.name} {sha256_of(path)}\n'.encode())
    return Target(*machine, bundle.digest, f'{export.precision} {graphs.hexdigest()[:16]}')


def provider_options(cache: Path, precision: str, graph: str, sizes: Mapping[str, int]) -> dict[str, str]:
    """Options of the TensorRT provider for one session; its Python binding takes 'True' and 'False', no numbers.

    The provider names an engine by its graph's inputs and nodes, which are the same at every static shape. So each
    shape has a folder of its own; timings of single layers serve all.

    Args:
        cache: where engines are kept.
        precision: of the graphs; a flag that an older ONNX Runtime may not know is given only where it is needed.
        graph: which.
        sizes: its dimensions that are fixed.
    """
    shape = '-'.join([graph, *(f'{name}{size}' for name, size in sorted(sizes.items()))])
    options = {
        'trt_engine_cache_enable': 'True',
        'trt_engine_cache_path': str(cache / shape),
        'trt_timing_cache_enable': 'True',
        'trt_timing_cache_path': str(cache),
    }
    if precision in ('fp16', 'bf16'):
        options[f'trt_{precision}_enable'] = 'True'
        # Allowed half precision, TensorRT takes it for the squares of a norm, too, whose sum overflows float16. With
        # this the provider keeps every Pow with a reduction behind it in float32: those of RMS norms as of layer norms.
        options['trt_layer_norm_fp32_fallback'] = 'True'
    return options


def open_runner(export: Export, cache: Path) -> OnnxRunner:
    """What runs graphs as TensorRT engines, and builds those that the cache lacks.

    Raises:
        VlaError: there is no TensorRT, or its device does not answer.
    """
    if export.precision == 'fp32':
        # TensorRT rounds float32 products to TF32, and its provider has no option against that. NVIDIA's libraries read
        # this when they start; a process that holds a float32 engine wants no TF32 elsewhere either.
        os.environ.setdefault('NVIDIA_TF32_OVERRIDE', '0')
    return OnnxRunner(export, 'tensorrt', options=partial(provider_options, cache, export.precision))


def has_engine(bundle: Path) -> bool:
    """Whether a bundle holds an engine at all, for whichever machine."""
    return any((bundle / FOLDER).glob(f'*/{TABLE}'))


def require_cache(
    bundle: Bundle,
    export: Export,
    *,
    build: bool = False,
    progress: Callable[[str], None] | None = None,
    machine: tuple[str, str, str] | None = None,
) -> Path:
    """The folder of the engine that fits this machine.

    Args:
        bundle: whose.
        export: the graphs it was built from.
        build: make it now if it is missing.
        progress: called with a line for each step of a build.
        machine: GPU, TensorRT, ONNX Runtime; this one unless given.

    Raises:
        VlaError: there is none, or only one for another GPU, TensorRT or other graphs, or a file of it was changed.
    """
    target = target_of(bundle, export, machine or this_machine())
    folder = bundle.folder / FOLDER / target.key
    fix = f'run: ki export {bundle.folder} --to tensorrt --precision {export.precision}'
    if (folder / TABLE).is_file():
        _check_files(folder, fix)
        return folder
    if build:
        return build_engine(bundle, export, progress=progress, machine=machine)
    others = [_read(path) for path in sorted((bundle.folder / FOLDER).glob(f'*/{TABLE}'))]
    differ = [_difference(target, other) for other in others if other is not None]
    if differ:
        raise VlaError(f'{bundle.folder / FOLDER}: no engine fits: {"; ".join(differ)}; {fix}')
    raise VlaError(f'{bundle.folder}: has no TensorRT engine; {fix}')


def _kept(folder: Path) -> list[Path]:
    """The files of an engine that its table answers for."""
    files = (path for path in folder.rglob('*') if path.is_file() or path.is_symlink())
    return sorted(path for path in files if path.suffix != TIMINGS and path.name != TABLE)


def _check_files(folder: Path, fix: str) -> None:
    """Every file of an engine against its table.

    Raises:
        VlaError: one is missing, changed, or not in the table.
    """
    files = read_json(folder / TABLE, VlaError, fix).get('files')
    if not isinstance(files, dict):
        raise VlaError(f'{folder / TABLE}: lists no files; {fix}')
    for path in _kept(folder):
        if path.relative_to(folder).as_posix() not in files:
            raise VlaError(f'{path}: is not in {TABLE}, and opening it would run code of it; remove it, or {fix}')
    for name, said in files.items():
        check_file(folder / name, said['bytes'], said['sha256'], fix)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return found.get('target') if isinstance(found, dict) else None


def _difference(target: Target, other: dict[str, Any]) -> str:
    wrong = [
        f'{name} {other.get(name)}, here {value}' for name, value in asdict(target).items() if other.get(name) != value
    ]
    return f'one was built for {" and ".join(wrong)}'


def build_engine(
    bundle: Bundle,
    export: Export,
    *,
    progress: Callable[[str], None] | None = None,
    machine: tuple[str, str, str] | None = None,
    runner: Callable[[Path], Any] | None = None,
) -> Path:
    """Build engines for every static shape, check them against torch, and keep them.

    Args:
        bundle: whose.
        export: the graphs.
        progress: called with a line for each step of the work.
        machine: see `require_cache`.
        runner: makes what runs the graphs with a cache folder; the TensorRT provider unless given.

    Raises:
        VlaError: no GPU or TensorRT, or an engine that differs from torch; nothing is kept then.
    """
    target = target_of(bundle, export, machine or this_machine())
    folder = bundle.folder / FOLDER / target.key
    report, begin = progress or (lambda line: None), time.perf_counter()
    make = runner or partial(open_runner, export)
    config, views = bundle.config, len(bundle.contract.cameras)
    given = parity.reference(of_bundle(bundle), export.steps, export.kinds, Shape(views, prompt_buckets(config)[0]))
    with atomic_folder(folder) as engines:
        with one_line_when_out_of_memory('building a TensorRT engine'):
            running = make(engines)
            for bucket in prompt_buckets(config):
                shape = Shape(views, bucket)
                report(f'{time.perf_counter() - begin:6.0f} s  building for {views} views, {bucket} prompt slots')
                prefix = running.prefill(shape, example_inputs(config, shape))
                for kind in export.kinds:
                    running.denoise(shape, prefix, given.noise_HA, given.carried(kind))
            found = parity.measure_runner(running, given)
        parity.check(found, export.precision)
        table = {
            'target': asdict(target),
            PARITY.split('.')[0]: found,
            'files': {
                path.relative_to(engines).as_posix(): {'bytes': path.stat().st_size, 'sha256': sha256_of(path)}
                for path in _kept(engines)
            },
            'seconds': round(time.perf_counter() - begin, 1),
        }
        (engines / TABLE).write_text(json.dumps(table, indent=2, sort_keys=True) + '\n', encoding='utf-8')
    report(f'{time.perf_counter() - begin:6.0f} s  engine kept in {folder}')
    return folder
