"""The file `torch/fp8.json` of a bundle: scales of FP8, and what they cost the policy when they were measured.

`ki export --precision fp8` writes it, and a GPU that has FP8 then serves the policy so; without the file it does not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki_common.files import read_json
from ki_vla.errors import VlaError

if TYPE_CHECKING:
    from ki_vla.engine.fused import LayerScales, Scales
    from ki_vla.policy.bundle import Bundle

FILE = Path('torch/fp8.json')
FORMAT = 1
LEAST_CAPABILITY = (8, 9)  # of a CUDA device whose tensor cores take E4M3


def digest_of(scales: Any) -> str:
    """What the file says of its scales, so that a changed digit is not served."""
    return hashlib.sha256(json.dumps(scales, sort_keys=True).encode()).hexdigest()


def has_scales(bundle: Path) -> bool:
    """Whether a bundle was exported for FP8."""
    return (bundle / FILE).is_file()


def read_scales(bundle: Bundle) -> Scales:
    """The scales of a bundle.

    Raises:
        VlaError: there are none, they were made from another bundle or changed since, or they are no scales.
    """
    path = bundle.folder / FILE
    fix = f'run: ki export {bundle.folder} --precision fp8'
    if not path.is_file():
        raise VlaError(f'{bundle.folder}: has no FP8 scales; {fix}')
    said = read_json(path, VlaError, fix)
    if said.get('format') != FORMAT:
        raise VlaError(f'{path}: is of another version; {fix}')
    if said.get('bundle') != bundle.digest:
        raise VlaError(f'{path}: is of another bundle than {bundle.digest[:12]}; {fix}')
    if said.get('sha256') != digest_of(said.get('scales')):
        raise VlaError(f'{path}: was changed after it was written; {fix}')
    try:
        return {stage: [_of_layer(row) for row in said['scales'][stage]] for stage in ('vision', 'prefix')}
    except (KeyError, TypeError, ValueError) as error:
        raise VlaError(f'{path}: field scales is incomplete ({error}); {fix}') from error


def _of_layer(row: Any) -> LayerScales:
    first, second, third = (float(each) for each in row)
    if not all(0 < each < float('inf') for each in (first, second, third)):
        raise ValueError(f'{row} is not three positive numbers')
    return first, second, third
