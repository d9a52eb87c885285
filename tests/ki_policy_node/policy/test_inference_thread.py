"""The thread that owns the engine."""

from __future__ import annotations

import threading

import pytest

from ki_policy_node.policy.inference_thread import InferenceThread


def test_the_inference_thread_runs_calls_and_hands_errors_back():
    thread = InferenceThread(lambda: 0.01)
    try:
        assert thread.call(lambda: threading.current_thread().name) == 'inference'
        with pytest.raises(ZeroDivisionError):
            thread.call(lambda: 1 // 0)
    finally:
        assert thread.close()
