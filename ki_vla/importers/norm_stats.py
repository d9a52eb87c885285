"""Statistics files: openpi's norm_stats.json, found, read and written; and those of `ki data stats`.

openpi's file has no column names. The caller gives those of the contract, whose columns must stand in openpi's order:
for two arms the left joints, left gripper, right joints, right gripper, then the base.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ki_common.errors import KiError
from ki_common.files import read_json
from ki_robot.contract.contract import Contract
from ki_robot.errors import RobotError
from ki_robot.transforms import ScalingRules, Stats, load_stats
from ki_vla.errors import VlaError

FILE, ASSETS = 'norm_stats.json', 'assets'
CONSTANT = 1e-6  # openpi's own histograms widen a column of zeros by 1e-10
MOMENTS = ('mean', 'std', 'q01', 'q99')
Z99 = 2.3263478740408408  # standard deviations from the mean to the 99th percentile of a normal distribution


def read_norm_stats(path: str | Path, contract: Contract, *, quantiles: bool = True) -> tuple[Stats, Stats]:
    """State and action statistics, named by the contract's columns in their order.

    Args:
        path: norm_stats.json, or the folder that holds it.
        contract: the robot whose columns these are.
        quantiles: the file must have them. Without, those that are absent are taken from mean and standard deviation as
            of a normal distribution, and the provenance says so: for policies that are scaled by z-scores.

    A file may hold more columns than the robot has where these never move: openpi pads some to the model's width.

    Raises:
        VlaError: unreadable, a part or a field missing, or columns of another robot: fewer, or more that do move.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    parts = read_json(path, VlaError).get('norm_stats')
    if not isinstance(parts, dict):
        raise VlaError(f'{path}: has no table norm_stats; it is not a file of openpi.')
    return (
        _stats(path, parts, 'state', contract.state_names, quantiles),
        _stats(path, parts, 'actions', contract.action_names, quantiles),
    )


def read_statistics(
    path: str | Path, contract: Contract, *, quantiles: bool = True
) -> tuple[Stats, Stats, ScalingRules]:
    """State and action statistics from openpi's file or that of `ki data stats`, and whose rules they come with.

    Args:
        path: the file, or a folder with openpi's.
        contract: the robot whose columns these are.
        quantiles: see `read_norm_stats`.

    Raises:
        VlaError: see `read_norm_stats`; or statistics of another robot.
    """
    path = Path(path)
    data = read_json(path / FILE if path.is_dir() else path, VlaError)
    if 'norm_stats' in data or not {'state', 'actions'} <= set(data):
        return (*read_norm_stats(path, contract, quantiles=quantiles), 'openpi')
    try:
        stats = load_stats(path)
        stats['state'].check(contract.state_names, 'state columns')
        stats['actions'].check(contract.action_names, 'action columns')
    except KiError as error:
        raise VlaError(f'{path}: {error}') from error
    return stats['state'], stats['actions'], 'ki'


def find_norm_stats(source: str | Path, asset: str | None = None) -> Path | None:
    """Openpi's statistics in a checkpoint: `assets/NAME/norm_stats.json`, beside `params/` or model.safetensors.

    Args:
        source: the checkpoint's folder or file.
        asset: which of several, by name.

    Raises:
        VlaError: several, and none is named; or not the one that is named.
    """
    source = Path(source)
    folder = next((each for each in (source, source.parent) if (each / ASSETS).is_dir()), source)
    found = {
        file.parent.relative_to(folder / ASSETS).as_posix(): file for file in sorted((folder / ASSETS).rglob(FILE))
    }
    if asset is not None:
        if asset not in found:
            raise VlaError(
                f'{folder / ASSETS}: has no statistics {asset!r}; it has {", ".join(found) or "none"}: write one of '
                'them as --asset, or give a file as --stats.'
            )
        return found[asset]
    if len(found) > 1:
        raise VlaError(
            f'{folder / ASSETS}: has the statistics of {", ".join(found)}; write which robot is yours: --asset NAME.'
        )
    return next(iter(found.values()), None)


def write_norm_stats(path: str | Path, state: Stats, actions: Stats) -> None:
    """Write statistics as openpi reads them."""
    parts = {
        name: {moment: getattr(stats, moment).tolist() for moment in MOMENTS}
        for name, stats in (('state', state), ('actions', actions))
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'norm_stats': parts}, indent=2, allow_nan=False) + '\n', encoding='utf-8')


def _stats(path: Path, parts: dict[str, Any], part: str, names: Sequence[str], quantiles: bool) -> Stats:
    """One part of the file as Stats."""
    table = parts.get(part)
    if not isinstance(table, dict):
        raise VlaError(f'{path}: norm_stats has no part {part!r}; it has {sorted(parts)}.')
    estimated = not quantiles and table.get('q01') is None and table.get('q99') is None
    given = ('mean', 'std') if estimated else MOMENTS
    values = {moment: _column(path, part, moment, table.get(moment)) for moment in given}
    widths = {moment: len(value) for moment, value in values.items()}
    if len(set(widths.values())) != 1:
        raise VlaError(f'{path}: norm_stats.{part} has columns of differing number: {widths}.')
    width = widths['mean']
    if width < len(names):
        raise VlaError(
            f'{path}: norm_stats.{part} has {width} columns, and {len(names)} are needed for the robot '
            f'({", ".join(names)}); give statistics of this robot, or a contract with their columns.'
        )
    if estimated:
        values |= {'q01': values['mean'] - Z99 * values['std'], 'q99': values['mean'] + Z99 * values['std']}
    moving = (values['std'] > CONSTANT) | (values['q99'] - values['q01'] > CONSTANT)
    if moving[len(names) :].any():
        used = 1 + int(np.flatnonzero(moving)[-1])
        raise VlaError(
            f'{path}: norm_stats.{part} has {used} columns that move, and the robot has {len(names)} '
            f'({", ".join(names)}); give statistics of this robot, or a contract with their columns.'
        )
    source = 'mean and std of a normal distribution' if estimated else 'the file'
    try:
        return Stats(
            names=tuple(names),
            **{moment: value[: len(names)] for moment, value in values.items()},
            count=1,
            provenance={'source': path.name, 'count': 'not in the file', 'quantiles': f'from {source}'},
        )
    except RobotError as error:
        raise VlaError(f'{path}: norm_stats.{part}: {error}') from error


def _column(path: Path, part: str, moment: str, value: Any) -> np.ndarray:
    """One list of numbers."""
    if value is None:
        raise VlaError(f'{path}: norm_stats.{part}.{moment} is missing; compute the statistics anew, with quantiles.')
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise VlaError(f'{path}: norm_stats.{part}.{moment} holds something that is no number.') from error
    if array.ndim != 1:
        raise VlaError(f'{path}: norm_stats.{part}.{moment} has the shape {array.shape}; a list is needed.')
    return array
