"""The executor as a process: what it must never load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('rclpy')
ROOT = Path(__file__).resolve().parents[2]


def test_the_executor_never_loads_torch_or_the_model():
    code = (
        'import sys, ki_policy_node.chunk_executor; '
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'ki_vla', 'onnxruntime')])"
    )
    found = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == '[]'
