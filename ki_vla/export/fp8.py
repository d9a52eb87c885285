"""`ki export --precision fp8`: scales for vision tower and backbone, written only if the policy keeps what it can.

The kernels are those of a GPU, and their twins in torch round as they do, so all of this runs on any machine; slowly on
a CPU, where one chunk of the full model takes minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki_common.files import write_text
from ki_vla.engine import fused
from ki_vla.engine.fp8_scales import FILE, FORMAT, digest_of
from ki_vla.engine.interface import Choice, Engine, Shape
from ki_vla.engine.torch import INPUTS, TorchMode, TorchRunner
from ki_vla.errors import VlaError
from ki_vla.export import parity
from ki_vla.export.source import of_bundle
from ki_vla.policy.bundle import Bundle
from ki_vla.policy.model_inputs import ModelInputs

LEAST_OBSERVED = 4  # half of them calibrate, the others judge
TWINS = TorchMode(fused=True, fp8=True)


def export_fp8(
    bundle: Bundle,
    observed: Sequence[ModelInputs],
    *,
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
    gate: Callable[[Engine], Any] | None = None,
) -> Path:
    """Calibrate a bundle for FP8, and judge it on what it was not calibrated on.

    Args:
        bundle: of which policy.
        observed: what the model was shown on its robot, in any order that mixes it; every other one calibrates.
        steps: Euler steps of the comparison; what the bundle recommends unless given.
        progress: called with a line for each step of the work.
        gate: asked with an engine in FP8; what it answers is kept, what it raises refuses the scales.

    Returns:
        The file that was written.

    Raises:
        VlaError: the model's structure does not fit, too few observations, or chunks that differ too much.
    """
    report, steps = progress or (lambda line: None), steps or bundle.serving.denoise_steps
    if reason := fused.why_not(bundle.config):
        raise VlaError(f'precision fp8: {reason}.')
    if len(observed) < LEAST_OBSERVED:
        raise VlaError(
            f'precision fp8: {len(observed)} observations, and it takes {LEAST_OBSERVED} to calibrate and to judge; '
            'name recordings of the robot with --bags, and --observations 16 or more.'
        )
    model = bundle.model('cpu', torch.float32).requires_grad_(False)
    report(f'calibrating on {len(observed[::2])} observations')
    scales = fused.calibrate(model, [_tensors(each) for each in observed[::2]])
    runner = TorchRunner(model, steps, TWINS, scales=scales)
    choice = Choice('torch', 'fp8', 'cpu', 'fp8', 'just calibrated')
    with Engine(runner, bundle.config, choice, len(bundle.contract.cameras)) as engine:
        report(f'running torch and FP8 on the other {len(observed[1::2])}')
        found = _measured(bundle, runner, observed[1::2], steps)
        parity.check(found, 'fp8')
        task = None if gate is None else gate(engine)
    entry = {
        'format': FORMAT,
        'bundle': bundle.digest,
        'scales': scales,
        'sha256': digest_of(scales),
        'observations': len(observed),
        'tolerance': parity.stated_tolerance('fp8'),
        'parity': found,
        'task': task,
        'made_with': {'torch': torch.__version__},
    }
    path = bundle.folder / FILE
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(entry, indent=2, sort_keys=True, allow_nan=False) + '\n')
    return path


def _tensors(inputs: ModelInputs) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(getattr(inputs, name)) for name in INPUTS)


def _measured(
    bundle: Bundle, runner: TorchRunner, observed: Sequence[ModelInputs], steps: int
) -> dict[str, dict[str, float]]:
    """How far keys, values and chunks of FP8 are from those of float32, at worst."""
    measured, source = [], of_bundle(bundle)
    for inputs in observed:
        given = parity.reference(source, steps, ('plain',), observed=inputs)
        shape = Shape(len(given.inputs.images_VHWC), len(given.inputs.prompt_L))
        cached = runner.prefill(shape, given.inputs)
        rows = given.valid_S.nonzero()[0]
        ours = torch.cat([cached.k[:, rows], cached.v[:, rows]]).float().numpy()
        exact = np.concatenate([given.keys[:, rows], given.values[:, rows]])
        chunk = runner.denoise(shape, cached, given.noise_HA, None)
        found = {'prefix': parity.compare(ours, exact), 'chunk': parity.compare(chunk, given.chunks['plain'])}
        measured.append(found)
    return parity.worst(measured)
