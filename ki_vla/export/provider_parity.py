"""The parity gate for another provider: graphs that were checked on one are checked again before another serves them.

An export is checked where it was made, usually on a CPU. CUDA uses other kernels, so the check is repeated there once.
Its result is kept beside the graphs for the next start; a new export, GPU or ONNX Runtime repeats it.
"""

from __future__ import annotations

import json
import logging
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ki_common.files import write_text
from ki_vla.engine.exported import Export
from ki_vla.engine.interface import Shape, example_inputs, prompt_buckets
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.errors import VlaError
from ki_vla.export import parity
from ki_vla.export.source import of_bundle
from ki_vla.policy.bundle import Bundle

log = logging.getLogger(__name__)


def require_parity(bundle: Bundle, export: Export, kind: str, machine: str | None = None) -> None:
    """Refuse graphs that do not compute on a provider what torch does; says nothing where they were checked on it.

    The first time, the model runs once in float32 on the CPU and the graphs run on the provider: seconds for a small
    model, minutes for a full one; the log says so.

    Args:
        bundle: whose.
        export: its graphs.
        kind: of `onnx.PROVIDERS`.
        machine: what the measure holds for; this one unless given.

    Raises:
        VlaError: they differ by more than their precision allows, or do not run there.
    """
    if kind == export.device:
        return
    path = export.folder / f'parity_{kind}.json'
    target = {'graphs': export.digest, 'machine': machine or this_machine(kind)}
    found = _kept(path, target)
    if found is None:
        found = _measure(bundle, export, kind)
        _keep(path, {**target, 'parity': found})
    try:
        parity.check(found, export.precision)
    except VlaError as error:
        raise VlaError(f'{export.folder}: agrees with torch on {export.device}, but not on {kind}: {error}') from error


def _measure(bundle: Bundle, export: Export, kind: str) -> dict[str, dict[str, float]]:
    """How close the graphs come on a provider; a provider that does not start says so before torch has worked."""
    log.warning(
        '%s: was checked on %s, not on %s; checking it once, which takes minutes for a large model. Beforehand: '
        'ki export %s --precision %s --device %s',
        *(export.folder, export.device, kind, bundle.folder, export.precision, kind),
    )
    begin, config = time.perf_counter(), bundle.config
    runner = OnnxRunner(export, kind)
    try:
        runner.vision(example_inputs(config, Shape(config.views, prompt_buckets(config)[0])))
    finally:
        runner.close()
    found = parity.measure(export, parity.reference(of_bundle(bundle), export.steps, export.kinds), kind)
    log.info('%s: checked on %s in %.1f s', export.folder, kind, time.perf_counter() - begin)
    return found


def this_machine(kind: str) -> str:
    """What decides how a provider computes: ONNX Runtime's version, and the GPU where there is one."""
    import torch

    names = []
    for package in ('onnxruntime', 'onnxruntime-gpu'):
        try:
            names.append(f'{package} {version(package)}')
        except PackageNotFoundError:
            continue
    if kind != 'cpu' and torch.cuda.is_available():
        names.append(torch.cuda.get_device_name())
    return ', '.join(names)


def _kept(path: Path, target: dict[str, str]) -> dict[str, dict[str, float]] | None:
    """What was measured for these graphs on this machine before, whether or not it was close enough."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        return found['parity'] if all(found[name] == value for name, value in target.items()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, table: dict[str, object]) -> None:
    try:
        write_text(path, json.dumps(table, indent=2, sort_keys=True) + '\n')
    except OSError as error:
        log.warning('%s: cannot be written (%s), so the next start checks again', path, error.strerror)
