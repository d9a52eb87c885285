"""The greatest speed and acceleration on a window are those that a controller plays."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_common.errors import KiError
from ki_robot.actions.motion import hermite

WINDOWS: dict[str, Any] = runpy.run_path(str(Path(__file__).resolve().parents[2] / 'benchmarks' / 'windows.py'))


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_peaks_are_the_most_that_is_met_on_the_way(seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.uniform(0.01, 0.3, points))
    values, rates = rng.normal(size=(points, 3)), rng.normal(size=(points, 3)) * rng.integers(0, 2)
    speed, acceleration = WINDOWS['peaks'](values, rates, times)
    met = np.zeros(3)
    steepest = np.zeros(3)
    for k in range(points - 1):
        span = float(times[k + 1] - times[k])
        at = np.linspace(0, 1, 401)
        passed = np.array([hermite(values[k], rates[k], values[k + 1], rates[k + 1], span, part)[1] for part in at])
        met = np.maximum(met, np.abs(passed).max(axis=0))
        steepest = np.maximum(steepest, np.abs(np.diff(passed, axis=0)).max(axis=0) / (span / 400))
    np.testing.assert_allclose(speed, met, rtol=1e-3)
    np.testing.assert_allclose(acceleration, steepest, rtol=2e-2)
    assert (speed >= met * (1 - 1e-9)).all()
    assert (acceleration >= steepest * (1 - 1e-9)).all()


def test_a_folder_without_windows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KiError, match='name the folder of a `ki demo`'):
        WINDOWS['measure'](tmp_path, 'bimanual_demo')
