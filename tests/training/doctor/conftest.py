"""Recordings in which everything is sound, and that a test spoils in one way."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from ki_robot.contract.contract import Contract
from training.doctor.diagnose import diagnose
from training.doctor.findings import Finding
from training.index.index import Index
from training.index.simulator_arrays import index_arrays

STEP_S, SIZE = 0.05, (24, 32)
COLUMNS = ('joint1/position', 'joint2/position', 'gripper/position', 'base/linear/x/velocity')
CAMERAS = ('scene', 'wrist')


@dataclass
class Take:
    """One episode: states and actions (T, 4), pictures of each camera (T, h, w, 3), and its words."""

    state: NDArray[np.float64]
    action: NDArray[np.float64]
    pictures: dict[str, NDArray[np.uint8]]
    words: str = 'lift the cup'
    name: str = field(default='', kw_only=True)

    def with_(self, **changed: object) -> Take:
        return replace(self, **changed)  # type: ignore[arg-type]


def wanted(seed: int, steps: int = 160, starts_at: float = 0.0) -> NDArray[np.float64]:
    """Smooth targets for the columns (T, 4), of another course for each seed."""
    rng = np.random.default_rng(seed)
    time_T = np.arange(steps) * STEP_S + starts_at
    course = np.zeros((steps, 4))
    for column, reach in enumerate((0.8, 0.6, 0.03, 0.3)):
        for _ in range(3):
            course[:, column] += reach / 3 * np.sin(rng.uniform(0.8, 2.5) * time_T + rng.uniform(0, 6.3))
    course[:, 2] += 0.04
    return course


def followed(action: NDArray[np.float64], lag: int = 2) -> NDArray[np.float64]:
    """States that follow their commands after some steps."""
    return np.concatenate([np.repeat(action[:1], lag, axis=0), action[: len(action) - lag]]) if lag else action.copy()


def seen(state: NDArray[np.float64], seed: int, late: int = 0) -> NDArray[np.uint8]:
    """Pictures whose scene turns with the first joint, `late` steps after them."""
    rng = np.random.default_rng(100 + seed)
    scene = cv2.resize(rng.integers(40, 215, (12, 64, 3)).astype(np.uint8), (256, SIZE[0]))
    turned = followed(state, late) if late else state
    at = (turned[:, 0] * 60 + turned[:, 1] * 5).round().astype(int)
    return np.stack([np.roll(scene, shift, axis=1)[:, : SIZE[1]] for shift in at])


def take(seed: int, steps: int = 160, words: str = 'lift the cup') -> Take:
    action = wanted(seed, steps)
    state = followed(action)
    return Take(state, action, {camera: seen(state, seed + place) for place, camera in enumerate(CAMERAS)}, words)


@pytest.fixture
def kit() -> SimpleNamespace:
    """What a test makes its own episodes with."""
    return SimpleNamespace(Take=Take, CAMERAS=CAMERAS, followed=followed, seen=seen, wanted=wanted)


@pytest.fixture
def sound() -> list[Take]:
    """Four episodes of two tasks."""
    return [take(seed, words=('lift the cup', 'open the drawer')[seed % 2]) for seed in range(4)]


@pytest.fixture
def index_of(toy: Contract, tmp_path: Path) -> Callable[..., Index]:
    def make(takes: Sequence[Take], contract: Contract = toy) -> Index:
        folder = tmp_path / f'takes{len(list(tmp_path.iterdir()))}'
        folder.mkdir()
        for number, each in enumerate(takes):
            _write(folder / f'take_{number:02d}.npz', each, number)
        return index_arrays(folder, contract, folder / 'index')

    return make


@pytest.fixture
def examined(index_of: Callable[..., Index]) -> Callable[..., list[Finding]]:
    return lambda takes, *contract: diagnose(index_of(takes, *contract))


def _write(path: Path, made: Take, number: int) -> None:
    steps = len(made.state)
    blobs = [
        cv2.imencode('.png', cv2.cvtColor(made.pictures[camera][step], cv2.COLOR_RGB2BGR))[1].reshape(-1)
        for step in range(steps)
        for camera in CAMERAS
    ]
    ends = np.concatenate([[0], np.cumsum([len(blob) for blob in blobs])])
    offset = np.stack([ends[step * len(CAMERAS) : (step + 1) * len(CAMERAS) + 1] for step in range(steps)])
    np.savez(
        path,
        meta=json.dumps({'instruction': made.words, 'take': number}),
        state=made.state,
        action=made.action,
        time_ns=1_700_000_000_000_000_000 + np.arange(steps, dtype=np.int64) * round(STEP_S * 1e9),
        subtask=np.zeros(steps, dtype=np.int64),
        subtasks=np.array([made.words]),
        jpeg=np.concatenate(blobs),
        offset=offset,
        cameras=np.array(CAMERAS),
        columns=np.array(COLUMNS),
    )
