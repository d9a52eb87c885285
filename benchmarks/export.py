"""What an export costs: time, memory, size, and how close the graphs are to torch.

    python benchmarks/export.py                                    writes benchmarks/results/export_mini_fp32.json
    python benchmarks/export.py --preset full --precision fp16     7 GB on disk, 12 GiB of memory with the check

Weights are seeded noise, read one part at a time as they are from a bundle. The result is written after the export,
and again after the check.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ki_common.errors import KiError
from ki_vla.engine.exported import Export
from ki_vla.engine.interface import Shape
from ki_vla.engine.stages import KINDS
from ki_vla.engine.torch import DTYPES
from ki_vla.export import parity
from ki_vla.export.graphs import export_graphs
from ki_vla.export.source import of_noise
from ki_vla.model.config import preset

RESULTS = Path(__file__).resolve().parent / 'results'
STEPS = 10


def peak_gib() -> float:
    """The most memory this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main() -> int:
    """Export, write; check, write again."""
    parser = argparse.ArgumentParser(prog='python benchmarks/export.py', description='What an export costs.')
    parser.add_argument('--preset', default='mini')
    parser.add_argument('--precision', default='fp32', choices=['fp32', 'fp16'])
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=KINDS)
    parser.add_argument('--views', type=int, default=1, help='of the observation that is checked')
    parser.add_argument('--output', type=Path, help='default: results/export_PRESET_PRECISION.json')
    given = parser.parse_args()
    output = given.output or RESULTS / f'export_{given.preset}_{given.precision}.json'
    config, kinds = preset(given.preset), tuple(given.kinds)
    result: dict[str, Any] = {
        'preset': given.preset,
        'precision': given.precision,
        'kinds': kinds,
        'torch': torch.__version__,
    }
    source, begin = of_noise(config), time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder, stages = Path(name), []

        def tell(line: str) -> None:
            stages.append({'at_s': round(time.perf_counter() - begin, 1), 'peak_gib': peak_gib(), 'stage': line})
            print(stages[-1], flush=True)

        token = export_graphs(source, folder, DTYPES[given.precision], STEPS, kinds, {}, tell)
        result |= {'export_s': round(time.perf_counter() - begin, 1), 'export_peak_gib': peak_gib(), 'stages': stages}
        result |= {
            'bytes': {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            'load': os.getloadavg(),
        }
        output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        tell('running torch as it is')
        expected = parity.reference(source, STEPS, kinds, Shape(given.views, min(48, config.max_prompt)))
        tell('running the graphs')
        result['parity'] = parity.measure(Export(folder, given.precision, kinds, STEPS, token, {}, {}), expected)
    result |= {'with_check_s': round(time.perf_counter() - begin, 1), 'with_check_peak_gib': peak_gib()}
    output.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(result, indent=1))
    parity.check(result['parity'], given.precision)
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KiError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
