"""A machine that lets the executor wait: the ticks come late, and /diagnostics says so with figures and advice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

pytestmark = pytest.mark.ros
SILENT_S = 0.8  # of the second after which the executor holds: what was on its way then may reach this process first


def said(rig) -> DiagnosticStatus:
    """The newest line of the executor."""
    found = [line for _, array in list(rig.diagnostics) for line in array.status if 'chunk_executor' in line.name]
    return found[-1] if found else DiagnosticStatus()


def test_late_ticks_are_told_and_the_robot_runs_on(rig):
    executor = rig.start_executor()
    rig.start_policy()
    rig.running()
    policies = {os.sched_getscheduler(int(each.name)) for each in Path(f'/proc/{executor.popen.pid}/task').iterdir()}
    values = rig.until('it tells', lambda: {each.key: each.value for each in said(rig).values})
    assert (policies == {os.SCHED_FIFO}) == (values['scheduling'] == 'SCHED_FIFO 40')
    assert 'nice -10' in values['scheduling'] or policies == {os.SCHED_FIFO} or 'not permitted' in executor.text()
    began_ns = time.monotonic_ns()
    for _ in range(20):
        executor.send(signal.SIGSTOP)
        time.sleep(0.03)
        executor.send(signal.SIGCONT)
        time.sleep(0.02)
    line = rig.until('it is told', lambda: 'too slow' in said(rig).message and said(rig))
    assert line.level == DiagnosticStatus.WARN
    values = {each.key: each.value for each in line.values}
    assert float(values['lateness max [ms]']) > 15.0
    assert float(values['late ticks [%]']) > 1.0
    assert 'End other programs' in line.message
    rig.until('it runs on', lambda: rig.state == 'run')
    rig.until('the log says it, too', lambda: 'too slow' in executor.text())
    # It may hold when the policy is silent, and then this process heard nothing either; never for being late itself.
    holds = [state.data for heard_ns, state in list(rig.states) if heard_ns > began_ns and state.data != 'run']
    heard_s = [heard_ns / 1e9 for heard_ns, _ in list(rig.statuses) if heard_ns > began_ns - 1_000_000_000]
    assert not holds or (max(np.diff(heard_s)) > SILENT_S and all('has been silent' in each for each in holds)), holds
