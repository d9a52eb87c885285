"""A robot's own files and the live robot, beside its contract: what `ki robot` drafts and compares."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ki_common.errors import KiError

if TYPE_CHECKING:
    from ki.doctor.doctor_data import LiveSource
    from ki_robot.contract.contract import Contract
    from training.doctor.findings import Finding

XACRO_S = 60.0  # seconds that xacro may take


def expanded(path: Path, arguments: Sequence[str] = ()) -> str:
    """The text of a URDF; a .xacro is expanded by the program of that name.

    Raises:
        KiError: it cannot be read, or there is no xacro, or it fails.
    """
    from ki_common.configuration.yaml_reader import read_text

    if path.suffix != '.xacro':
        return read_text(path, KiError)
    program = shutil.which('xacro')
    if program is None:
        raise KiError(f'{path} needs xacro, which is not installed; run `xacro {path.name} > robot.urdf` on the robot.')
    try:
        done = subprocess.run(
            [program, str(path), *arguments], capture_output=True, text=True, timeout=XACRO_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise KiError(f'{path}: xacro took longer than {XACRO_S:g} s.') from None
    if done.returncode:
        last = (done.stderr.strip() or 'it said nothing').splitlines()[-1]
        raise KiError(f'{path}: xacro failed ({last}); give its arguments with --arg NAME:=VALUE.')
    return done.stdout


def new_contract(urdf: str, where: str, controllers: Path | None, joint_limits: Path | None) -> tuple[str, str]:
    """Text and name of a drafted contract.

    Raises:
        RobotError: the files describe no robot.
    """
    from ki_common.configuration.yaml_reader import parse_yaml, read_yaml
    from ki_robot.contract.draft import controllers_of, draft
    from ki_robot.contract.limits import read_limits
    from ki_robot.errors import RobotError

    found, rate = controllers_of(read_yaml(controllers, RobotError), str(controllers)) if controllers else ([], None)
    text = draft(urdf, where, found, rate, read_limits(joint_limits) if joint_limits else None)
    return text, str(parse_yaml(text, where)['name'])


def summary_of(contract: Contract) -> str:
    """A contract in a few lines."""
    lines = [
        f'{contract.name}: {contract.rate_hz:g} Hz, chunks of {contract.horizon} steps; '
        f'{len(contract.cameras)} cameras, {len(contract.state)} state and {len(contract.actions)} action columns'
    ]
    for output in contract.outputs:
        lines.append(f'  {output.name}: {output.kind} on {output.topic}, {len(output.columns)} columns')
    return '\n'.join(lines if contract.outputs else [*lines, '  no outputs: for training and replay only'])


def findings_of(contract: Contract, files: Sequence[Path], live: LiveSource | None) -> list[Finding]:
    """What speaks against a contract.

    Raises:
        RobotError: a limits file shares no joint with it, or leaves no room.
        NodeError: ROS cannot be had.
    """
    from training.doctor.findings import by_weight

    found = [*_looser(contract, files), *([] if live is None else _live(contract, live))]
    return by_weight(found)


def _looser(contract: Contract, files: Sequence[Path]) -> Iterator[Finding]:
    """Limits beyond those of the robot's own files."""
    from ki_robot.contract.limits import action_limits, read_limits
    from training.doctor.findings import WARNING, Finding

    for path in files:
        for column, both in zip(contract.actions, action_limits(contract, read_limits(path)), strict=True):
            for name in ('lower', 'upper', 'velocity', 'acceleration', 'jerk'):
                ours, theirs = getattr(column.limits, name), getattr(both, name)
                if ours is not None and ours != theirs:
                    text = f'{column.name}: {name} is {ours:g} here and {theirs:g} in {path}; take the tighter one'
                    yield Finding(WARNING, column.name, 'looser_limit', text)


def _live(contract: Contract, live: LiveSource) -> Iterator[Finding]:
    """What the robot does not publish, or publishes otherwise, and controllers that do not listen."""
    from ki.support.progress import progress
    from ki_policy_node.common.live_probe import listen
    from training.doctor.diagnose import known_limits, unit_findings
    from training.doctor.findings import ERROR, WARNING, Finding
    from training.evaluate.train_deploy_drift import stream_findings

    with progress(f'listening for {live.seconds:g} s'):
        heard = listen(contract, live.seconds, live.wait_s, live.namespace, live.sim_time)
    yield from stream_findings(contract, heard.health, heard.rates_hz, heard.moments, heard.blind)
    for output in contract.outputs:
        if not heard.listeners.get(output.name):
            text = f'{output.name}: no controller listens on {output.topic}; is it active, its name right?'
            yield Finding(WARNING, output.name, 'no_controller', text)
    if not len(heard.states_TS):
        return
    limits = known_limits(contract)
    for place, column in enumerate(contract.state):
        low, high = float(heard.states_TS[:, place].min()), float(heard.states_TS[:, place].max())
        units = unit_findings(f'state {column.name}', column, low, high, limits.get(column.name))
        yield from units
        bounds = limits.get(column.name)
        if units or bounds is None or bounds.lower is None or bounds.upper is None:
            continue
        if low < bounds.lower or high > bounds.upper:
            text = (
                f'state {column.name} is at {low:.4g}..{high:.4g} {column.unit}, outside its limits '
                f'{bounds.lower:g}..{bounds.upper:g}; correct the limits, or move the robot'
            )
            yield Finding(ERROR, column.name, 'outside_limits', text)
