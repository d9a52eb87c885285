"""`ki export`: write graphs into a bundle, only if they agree with torch."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ki_common.files import atomic_folder, sha256_of, write_text
from ki_vla.engine.exported import FOLDER, FORMAT, PARITY, PRECISIONS, SAID, WEIGHTS, Export, find_export, read_parity
from ki_vla.engine.interface import Choice, Engine, one_line_when_out_of_memory
from ki_vla.engine.onnx import PROVIDERS, OnnxRunner, check_provider
from ki_vla.errors import VlaError
from ki_vla.export import parity
from ki_vla.export.graphs import OPSET, Progress, export_graphs
from ki_vla.export.source import Source, of_bundle
from ki_vla.model.config import ModelConfig
from ki_vla.policy.bundle import Bundle
from ki_vla.policy.model_inputs import ModelInputs

# An engine of graphs that agree with torch -> what is to be kept about the task, or an error
Gate = Callable[[Engine], Any]


def export_onnx(
    bundle: Bundle,
    precision: str = 'fp32',
    *,
    steps: int | None = None,
    kinds: Sequence[str] | None = None,
    device: str = 'cpu',
    progress: Progress | None = None,
    source: Source | None = None,
    observed: Sequence[ModelInputs] = (),
    gate: Gate | None = None,
) -> Export:
    """Export a bundle's graphs, check them against torch, and put them into the bundle.

    They appear under `onnx/PRECISION` complete and checked, or not at all; what was there before stays until then.

    Args:
        bundle: of which policy.
        precision: 'fp32', 'fp16', 'bf16', or 'int8' (float32 graphs whose matrix products are quantised dynamically).
        steps: Euler steps that times are tabled for; what the bundle recommends unless given.
        kinds: ways to actions, see `kinds_of`; all that the policy was trained for unless given.
        device: of the check, 'cpu' or 'cuda'.
        progress: called with a line for each step of the work.
        source: the weights, in place of the bundle's file.
        observed: what the model was shown on a robot; the graphs must agree with torch on it, too.
        gate: asked with an engine of the graphs once they agree with torch; what it answers is kept with them, what it
            raises refuses them.

    Raises:
        VlaError: unknown precision or kind, a head that cannot be exported, graphs that differ from torch.
    """
    kinds = tuple(kinds or kinds_of(bundle))
    check_choice(precision, kinds, bundle.config)
    steps = 1 if bundle.config.head == 'parallel' else steps or bundle.serving.denoise_steps
    if precision == 'bf16' and device == 'cpu':
        raise VlaError(
            'bf16: ONNX Runtime has no bfloat16 products on a CPU, so the graphs cannot be checked there; use fp16, or '
            '--device cuda on a machine with a GPU.'
        )
    if device != 'cpu':
        check_provider(device)
    target = bundle.folder / FOLDER / precision
    report = progress or (lambda line: None)
    try:
        with atomic_folder(target) as partial, one_line_when_out_of_memory('exporting'):
            weights = source or of_bundle(bundle)
            export, found = _make(
                weights,
                partial,
                precision,
                steps,
                kinds,
                device,
                report,
                _metadata(bundle, precision),
                _ready(bundle, steps, kinds) if precision == 'int8' else None,
            )
            seen = _on_observations(export, weights, observed, device, report)
            task = None if gate is None else _asked(gate, export, bundle, device)
    finally:
        if not any(target.parent.iterdir()):
            target.parent.rmdir()
    files = {path.name: {'bytes': path.stat().st_size, 'sha256': sha256_of(path)} for path in sorted(target.iterdir())}
    entry = {
        'bundle': bundle.digest,
        'contract': bundle.contract.hash,
        'opset': OPSET,
        'steps': steps,
        'kinds': list(kinds),
        'state_token': export.state_token,
        'device': device,
        'tolerance': parity.stated_tolerance(precision),
        'parity': found,
        **({'observed': {'count': len(observed), 'worst': seen}} if observed else {}),
        'task': task,
        'made_with': _versions(),
        'files': files,
    }
    _enter(bundle.folder, precision, entry)
    return find_export(bundle.folder, bundle.digest, precision)


def kinds_of(bundle: Bundle) -> tuple[str, ...]:
    """The ways to actions that a policy is served with: tokens, or its head's ways of denoising."""
    return (SAID,) if bundle.serving.decode == SAID else bundle.config.denoising_kinds


def _asked(gate: Gate, export: Export, bundle: Bundle, device: str) -> Any:
    choice = Choice('onnx', PROVIDERS[device], device, export.precision, 'just exported')
    views = len(bundle.contract.cameras)
    with Engine(OnnxRunner(export, device), bundle.config, choice, views, export.kinds) as engine:
        return gate(engine)


def check_choice(precision: str, kinds: Sequence[str], config: ModelConfig) -> None:
    """Refuse names that do not exist, and ways to actions that a model has not.

    Raises:
        VlaError: unknown precision or kind.
    """
    if precision not in PRECISIONS:
        raise VlaError(f'precision {precision!r} is unknown; choose one of {", ".join(PRECISIONS)}.')
    known = (*config.denoising_kinds, SAID)
    unknown = sorted(set(kinds) - set(known))
    if unknown or not {'plain', SAID} & set(kinds):
        needed = f'"plain" among them, or {SAID} alone' if 'plain' in known else f'head {config.head!r} has no other'
        raise VlaError(f'kinds {", ".join(kinds)}: choose of {", ".join(known)}, {needed}.')


def _make(
    source: Source,
    folder: Path,
    precision: str,
    steps: int,
    kinds: Sequence[str],
    device: str,
    report: Progress,
    metadata: dict[str, str],
    ready: Export | None,
) -> tuple[Export, dict[str, dict[str, float]]]:
    """Graphs in `folder`, and how close they came."""
    from ki_vla.engine.torch import DTYPES

    begin = time.perf_counter()

    def timed(line: str) -> None:
        report(f'{time.perf_counter() - begin:6.1f} s  {line}')

    if ready is not None:
        timed('taking the float32 graphs that are there')
        for graph in sorted(ready.folder.glob('*.onnx')):
            shutil.copy2(graph, folder)
        shutil.copy2(ready.folder / WEIGHTS, folder)
        state_token = ready.state_token
    else:
        dtype = DTYPES.get(precision, DTYPES['fp32'])
        state_token = export_graphs(source, folder, dtype, steps, kinds, metadata, timed)
    if precision == 'int8':
        from ki_vla.export.quantise import quantise

        timed('quantising matrix products')
        quantise(folder, metadata)
    export = Export(folder, precision, tuple(kinds), steps, state_token, {}, {})
    timed('running torch as it is')
    given = parity.reference(source, steps, kinds)
    if given.is_trivial:
        timed('note: this model is untrained, its field is zero; agreement of the action graphs says nothing')
    timed('running the graphs')
    found = parity.measure(export, given, device)
    parity.check(found, precision)
    timed('graphs agree with torch')
    return export, found


def _on_observations(
    export: Export, source: Source, observed: Sequence[ModelInputs], device: str, report: Progress
) -> dict[str, dict[str, float]]:
    """How close the graphs come on real observations; refused as on seeded ones."""
    measured, kinds = [], [kind for kind in export.kinds if kind in ('plain', SAID)]
    for number, inputs in enumerate(observed, 1):
        report(f'running torch and the graphs on observation {number} of {len(observed)}')
        found = parity.measure(export, parity.reference(source, export.steps, kinds, observed=inputs), device)
        try:
            parity.check(found, export.precision)
        except VlaError as error:
            raise VlaError(f'observation {number} of the recordings: {error}') from error
        measured.append(found)
    return parity.worst(measured)


def _ready(bundle: Bundle, steps: int, kinds: Sequence[str]) -> Export | None:
    """Float32 graphs of this very bundle that can be quantised as they are."""
    try:
        found = find_export(bundle.folder, bundle.digest, 'fp32')
    except VlaError:
        return None
    return found if found.steps == steps and set(kinds) <= set(found.kinds) else None


def _metadata(bundle: Bundle, precision: str) -> dict[str, str]:
    said = parity.stated_tolerance(precision)
    error = '' if said['max_error'] is None else f', max_error <= {said["max_error"]:g} ({said["of"]})'
    return {
        'ki.bundle': bundle.digest,
        'ki.contract': bundle.contract.hash,
        'ki.policy': bundle.policy_id,
        'ki.precision': precision,
        'ki.tolerance': f'cosine >= {said["cosine"]:g}{error}',
    }


def _versions() -> dict[str, str]:
    found = {'python': platform.python_version()}
    for name in ('torch', 'onnx', 'onnxscript', 'onnxruntime', 'onnxruntime-gpu'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _enter(bundle: Path, precision: str, entry: dict[str, Any]) -> None:
    """Enter an export into the table: last, so that the table never names files that are not there yet."""
    try:
        table = read_parity(bundle)
    except VlaError:  # an unreadable table speaks for nothing
        table = {}
    table[precision] = entry
    text = json.dumps({'format': FORMAT, 'precisions': table}, indent=2, sort_keys=True, allow_nan=False)
    write_text(bundle / FOLDER / PARITY, text + '\n')
