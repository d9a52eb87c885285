"""The executor as a process: what it must never load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
ROOT = Path(__file__).resolve().parents[3]


def test_kinds_and_severities_have_the_numbers_of_the_message():
    from ki_msgs.msg import SafetyEvent

    from ki_policy_node.executor.safety import Kind, Severity

    spoken = {name: value for name, value in vars(SafetyEvent).items() if name.startswith(('KIND_', 'SEVERITY_'))}
    for prefix, words in (('KIND_', Kind), ('SEVERITY_', Severity)):
        assert {prefix + word.name: word.value for word in words}.items() <= spoken.items()
    assert {name for name in spoken if name.startswith('KIND_')} == {f'KIND_{kind.name}' for kind in Kind}


def test_the_executor_never_loads_torch_or_the_model():
    code = (
        'import sys, ki_policy_node.executor.executor_node; '
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'ki_vla', 'onnxruntime')])"
    )
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'


def test_fast_simulated_time_is_ticked_through_and_slow_or_jumping_time_is_not():
    from ki_policy_node.executor.executor_node import due_ticks

    begin, ms = 10**12, 1_000_000
    assert due_ticks(begin, begin + 10 * ms, 100.0) == [begin + 10 * ms]
    assert due_ticks(begin, begin + 30 * ms, 100.0) == [begin + k * ms for k in (10, 20, 30)]
    assert due_ticks(begin, begin, 100.0) == [begin]
    assert due_ticks(begin, begin + ms, 100.0) == [begin + ms]
    assert due_ticks(begin, begin - 10**9, 100.0) == [begin - 10**9]
    assert due_ticks(0, begin, 100.0) == [begin]
