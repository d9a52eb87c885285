"""How chunks should follow each other: success, seams and delay for every mode, measured in the simulator."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ki.simulation.sim_evaluation import EvaluationCell, Plays, cells_of, evaluate_cells, together
from ki_common.files import read_json, write_text

MODES = ('latest', 'queue', 'temporal_ensemble', 'guided')
DELAYS = (0, 2, 4, 8)
TRAINED_MODES = ('latest', 'rtc')  # of a policy that was trained with delays
FILE = 'modes.json'


def measure(
    plays: Plays,
    rtc: Path | None,
    tasks: Sequence[str],
    delays: Sequence[int],
    execute_steps: int,
    out: Path,
    tell: Callable[[], None],
) -> list[dict[str, Any]]:
    """A row for each mode and delay; a second call plays what is missing.

    Args:
        plays: The policy and the scenes.
        rtc: A policy that was trained with delays, for `TRAINED_MODES`; None leaves them out.
        tasks: Of the simulator.
        delays: Steps that an inference is thought to take.
        execute_steps: Of a chunk, after which the next is planned.
        out: Folder of the episodes.
        tell: Told of every episode.
    """
    rows: list[dict[str, Any]] = []
    sets: list[tuple[Plays, Sequence[str], Path]] = [(plays, MODES, out)]
    if rtc is not None:
        sets.append((replace(plays, bundle=rtc), TRAINED_MODES, out / 'trained'))
    for policy, modes, folder in sets:
        cells = cells_of(tasks, modes, [execute_steps], delays)
        found: dict[tuple[str, int], list[Any]] = {}
        for cell, report in evaluate_cells(policy, cells, folder, tell=lambda *_: tell()):
            group = found.setdefault((cell.mode, cell.delay_steps), [])
            group.append(report)
            if len(group) == len(tasks):
                rows.append(_row(cell, group))
    return rows


def _row(cell: EvaluationCell, reports: Sequence[Any]) -> dict[str, Any]:
    summary = together(reports)
    names = ('success', 'followed', 'time_s', 'seam', 'think_s', 'episodes')
    about = {'mode': cell.mode, 'delay_steps': cell.delay_steps, 'policy': reports[0].settings['policy']}
    return {**about, 'execute_steps': cell.execute_steps, **{name: summary[name] for name in names}}


def save(rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Beside the cells."""
    path = folder / FILE
    write_text(path, json.dumps({'rows': list(rows)}, indent=1) + '\n')
    return path


def modes_section(folder: Path) -> str:
    """Of the page."""
    from ki.evidence.matrix import EvidenceError

    title = '## How chunks follow each other'
    path = folder / FILE
    if not path.exists():
        return f'{title}\n\nNot run: `ki evidence modes BUNDLE --rtc BUNDLE_TRAINED_WITH_DELAYS`.'
    rows: list[dict[str, Any]] = list(read_json(path, EvidenceError, 'measure them again')['rows'])
    head = ['| policy | mode | delay | success | mean time | seam |', '|---|---|---|---|---|---|']
    text = (
        f'{rows[0]["execute_steps"]} steps of each chunk are carried out. *Delay*: steps of 50 ms that an inference '
        "takes. *Seam*: the largest change of a joint's commanded speed from one step to the next, as a share of its "
        'limit, mean over episodes.'
    )
    return '\n\n'.join([title, text, '\n'.join([*head, *map(_line, rows)])])


def _line(row: dict[str, Any]) -> str:
    rate = row['success']
    shown = f'{rate["k"]}/{rate["n"]} = {rate["rate"]:.0%} [{rate["low"]:.0%}, {rate["high"]:.0%}]'
    took = '' if row['time_s'] is None else f'{row["time_s"]:.1f} s'
    cells = (row['policy'].partition('@')[0], row['mode'], row['delay_steps'], shown, took, f'{row["seam"]:.2f}')
    return f'| {" | ".join(map(str, cells))} |'
