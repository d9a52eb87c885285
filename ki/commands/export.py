"""Graphs for ONNX Runtime and TensorRT, put into a bundle once they agree with torch."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path

import typer

FP8_OBSERVATIONS = 32
app = typer.Typer(help='Graphs for ONNX Runtime and TensorRT, put into a bundle once they agree with torch.')


@app.command()
def export(
    bundle: Path = typer.Argument(help='The folder of a bundle.'),
    to: str = typer.Option('onnx', help='onnx, or tensorrt (an engine for the GPU of this machine; takes minutes).'),
    precision: str = typer.Option(
        'fp32', help='fp32, fp16, bf16 (needs a GPU), int8 (for CPUs), or fp8 (scales for a GPU; no graphs).'
    ),
    steps: int | None = typer.Option(None, min=1, help='Euler steps; what the bundle recommends unless given.'),
    kinds: str = typer.Option(
        '', help='Of plain, guided, trained (these two continue a chunk), tokens; else all that it is served with.'
    ),
    device: str = typer.Option('cpu', help='Where the graphs are checked: cpu or cuda.'),
    bags: Path | None = typer.Option(
        None, help='Recordings whose observations it must agree on, too; fp8 is calibrated on them.'
    ),
    observations: int = typer.Option(0, min=0, help='How many of them; 0: 4, and 32 for fp8.'),
    scenes: int = typer.Option(
        50, min=0, help='int8, fp8: scenes of the simulator, played before and after; 0: none, and that is noted.'
    ),
    task: list[str] | None = typer.Option(
        None, help='int8, fp8: the task that is played, several times for several; else those it was trained on.'
    ),
    compare_on: Path | None = typer.Option(
        None, help="int8, fp8: a recording to compare on, for another robot's policy."
    ),
    missing: bool = typer.Option(False, '--missing', help='Only what these weights do not have yet.'),
) -> None:
    """Exports a bundle. What differs from torch by more than its precision allows is not written.

    Nor is int8 or fp8 with which the policy does its task worse: closeness of numbers alone does not show that. For fp8
    scales are written, with which a GPU computes vision tower and backbone; a policy of the simulator is calibrated on
    scenes of it where no --bags are named.
    """
    from rich.console import Console
    from rich.table import Table

    from ki.support.recorded_inputs import recorded_inputs
    from ki_vla.engine.exported import find_export
    from ki_vla.errors import VlaError
    from ki_vla.policy.bundle import load_bundle

    if to not in ('onnx', 'tensorrt'):
        raise VlaError(f'--to {to}: choose onnx or tensorrt.')
    if device not in ('cpu', 'cuda'):
        raise VlaError(f'--device {device}: choose cpu or cuda.')
    loaded = load_bundle(bundle)
    tell = Console(stderr=True, highlight=False).print
    if to == 'tensorrt':
        from ki_vla.export.tensorrt import build_engine, this_machine

        machine = this_machine()
        print(build_engine(loaded, find_export(bundle, loaded.digest, precision), progress=tell, machine=machine))
        return
    from ki.simulation.simulated_inputs import simulated_inputs
    from ki.simulation.task_gate import GATED, Trial, compared, is_simulated
    from ki_sim.tasks.tasks import task_names
    from ki_vla.export.fp8 import export_fp8
    from ki_vla.export.write import export_onnx, kinds_of

    steps = steps or loaded.serving.denoise_steps
    chosen = tuple(each.strip() for each in kinds.split(',') if each.strip()) or kinds_of(loaded)
    if missing:
        with contextlib.suppress(VlaError):
            there = find_export(bundle, loaded.digest, precision)
            if set(chosen) <= set(there.kinds) and there.steps == steps and device in ('cpu', there.device):
                return
    count = observations or (FP8_OBSERVATIONS if precision == 'fp8' else 4)
    observed = [] if bags is None else recorded_inputs(loaded.processor, bags, count)
    trial = Trial(scenes, tuple(task_names(task)) if task else (), compare_on)
    if precision == 'fp8':
        if not observed and is_simulated(loaded):
            observed = simulated_inputs(loaded, count)
        asked = partial(compared, loaded, trial=trial, tell=tell)
        print(export_fp8(loaded, observed, steps=steps, progress=tell, gate=asked))
        return
    # Graphs that only say tokens are compared token by token; no engine of chunks could play them here.
    gated = precision in GATED and 'plain' in chosen
    gate = partial(compared, loaded, trial=trial, tell=tell) if gated else None
    made = export_onnx(
        loaded, precision, steps=steps, kinds=chosen, device=device, progress=tell, observed=observed, gate=gate
    )
    table = Table('graph', 'cosine', 'largest error', box=None)
    for graph, found in made.parity.items():
        table.add_row(graph, f'{found["cosine"]:.8f}', f'{found["max_error"]:.2e}')
    Console().print(table)
    print(made.folder)
