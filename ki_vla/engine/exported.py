"""The folder `onnx/` of a bundle: graphs by precision, and how close each was measured to torch.

onnx/parity.json           for every precision: bundle, files, errors against torch, provider they were measured on
onnx/fp32/vision.onnx      images -> tokens
          prefix.onnx      tokens, prompt, state -> all that the action expert reads
          plain.onnx       one Euler step; trained.onnx and guided.onnx continue the chunk before
          token_prefix.onnx, token.onnx   for actions that are said as tokens: the prefix, and one token more
          weights.data     the weights of all graphs
          parity_cuda.json errors on another provider, measured when it first opened them (`export/provider_parity.py`)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_common.files import read_json, sha256_of
from ki_vla.errors import VlaError

FOLDER, PARITY, WEIGHTS = 'onnx', 'parity.json', 'weights.data'
FORMAT = 1
STAGES = ('vision', 'prefix')
TOKEN_GRAPHS = ('token_prefix', 'token')
SAID = 'tokens'  # beside the ways of denoising: actions that the backbone says
PRECISIONS = ('fp32', 'fp16', 'bf16', 'int8')


@dataclass(frozen=True)
class Export:
    """The graphs of one precision.

    Attributes:
        folder: where the files lie.
        precision: of the weights.
        kinds: ways of denoising that were exported.
        steps: Euler steps that the tables were made for.
        state_token: whether the prefix also hands on pi0's state token.
        parity: graph -> cosine and max_error against torch, as measured when it was written.
        made_with: versions of what made it.
        device: the provider that `parity` was measured on, of `onnx.PROVIDERS`.
        digest: of its files, as they were written down.
    """

    folder: Path
    precision: str
    kinds: tuple[str, ...]
    steps: int
    state_token: bool
    parity: dict[str, dict[str, float]]
    made_with: dict[str, str]
    device: str = 'cpu'
    digest: str = ''


def read_parity(bundle: Path) -> dict[str, Any]:
    """The table of what was exported; empty when nothing was.

    Raises:
        VlaError: the file cannot be read.
    """
    path = bundle / FOLDER / PARITY
    if not path.is_file():
        return {}
    table = read_json(path, VlaError, 'export again')
    found = table.get('precisions')
    if table.get('format') != FORMAT or not isinstance(found, dict):
        raise VlaError(f'{path}: is of another version; export again.')
    return found


def find_export(bundle: Path, digest: str, precision: str) -> Export:
    """The export of a bundle in one precision, its files checked.

    Args:
        bundle: the folder of the bundle.
        digest: of the bundle as it is now.
        precision: of `PRECISIONS`.

    Raises:
        VlaError: there is none, it was made from another bundle, or a file is missing, cut short or changed.
    """
    fix = f'run: ki export {bundle} --to onnx --precision {precision}'
    entry = read_parity(bundle).get(precision)
    if entry is None:
        raise VlaError(f'{bundle}: has no {precision} ONNX graphs; {fix}')
    try:
        return _checked(bundle / FOLDER / precision, precision, entry, digest, fix)
    except (KeyError, TypeError, AttributeError) as error:
        raise VlaError(f'{bundle / FOLDER / PARITY}: the entry {precision} is incomplete ({error}); {fix}') from error


def _checked(folder: Path, precision: str, entry: Mapping[str, Any], digest: str, fix: str) -> Export:
    if entry['bundle'] != digest:
        raise VlaError(f'{folder}: was exported from bundle {entry["bundle"][:12]}, this one is {digest[:12]}; {fix}')
    for name, said in entry['files'].items():
        check_file(folder / name, said['bytes'], said['sha256'], fix)
    return Export(
        folder,
        precision,
        tuple(entry['kinds']),
        int(entry['steps']),
        bool(entry['state_token']),
        entry['parity'],
        entry['made_with'],
        entry['device'],
        hashlib.sha256(json.dumps(entry['files'], sort_keys=True).encode()).hexdigest(),
    )


def check_file(path: Path, size: int, digest: str, fix: str) -> None:
    """One file of an export against what was written down.

    Raises:
        VlaError: it is missing, cut short or changed.
    """
    if not path.is_file():
        raise VlaError(f'{path}: is missing; {fix}')
    found = path.stat().st_size
    if found != size:
        raise VlaError(f'{path}: has {found} bytes where {size} were written; it was cut short or changed; {fix}')
    if sha256_of(path) != digest:
        raise VlaError(f'{path}: is not the file that was checked against torch; {fix}')
