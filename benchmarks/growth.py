"""How the work on recordings grows: cutting one into episodes by its length, opening an index by its episodes.

    python benchmarks/growth.py [--most 100000] [--out benchmarks/results/growth.json]

Seconds are of CPU, so that a busy machine changes them little. The exponent is the slope between the two largest on
logarithmic axes: 1 is proportional. Recordings and index are made up: uneven streams without pictures, and episodes
of 200 steps with three cameras, one to a recording, that share their files.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before the file training.py, which hides that room
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np

from ki_bags.problems import Problems
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.commands import Command
from ki_robot.messages.states import measured_columns
from training.fit.stats import provenance
from training.index.episodes import IndexOptions, episodes_of
from training.index.index import _write_index, load_index
from training.index.streams import Collected, Marker, Track
from training.samples.dataset import EpisodeDataset, split_episodes
from training.samples.mixture import Draw, Loader, Mixture, Part, Sampler

ROOT = Path(__file__).resolve().parent.parent
START_NS = 1_700_000_000_000_000_000
STEPS = 200
MINUTES = (5, 10, 20, 40)
EPISODES_A_MINUTE = 2


def recording(contract: Contract, minutes: int) -> Collected:
    """What is left of a recording once it is read: 100 Hz states, 30 Hz pictures, 20 Hz commands, markers."""
    rng, found = np.random.default_rng(0), Collected()

    def fill(hz: float, rows: Any) -> Track:
        track = Track()
        stamps = START_NS + np.arange(round(minutes * 60 * hz)) * round(1e9 / hz)
        for stamp, row in zip(stamps.tolist(), rows(len(stamps)), strict=True):
            track.add(stamp, stamp + 5_000_000, row)
        return track

    for camera in contract.cameras:
        found.cameras[camera.name] = fill(30, lambda count: [(0, 1, 0)] * count)
    for stream in contract.state_streams:
        columns = found.state_columns[stream.name] = measured_columns(contract, stream)
        found.states[stream.name] = fill(100, lambda count, n=len(columns): list(rng.normal(size=(count, n))))  # noqa: B008
    for output in contract.robot.outputs:
        command = Command(np.zeros(1, dtype=np.int64), np.zeros((1, len(output.columns))))
        found.commands[output.name] = fill(20, lambda count, one=command: [one] * count)
    for episode in range(minutes * EPISODES_A_MINUTE):
        for begins, share in ((True, 0.05), (False, 0.95)):
            stamp = START_NS + round((episode + share) * 60e9 / EPISODES_A_MINUTE)
            found.markers.add(stamp, stamp, Marker(begins, f'task {episode}', 1, episode))
    return found


def cutting(contract: Contract) -> dict[str, Any]:
    """CPU seconds of cutting recordings of several lengths into episodes."""
    found: dict[str, Any] = {}
    for minutes in MINUTES:
        read = recording(contract, minutes)
        started = time.process_time()
        made = episodes_of(read, contract, IndexOptions(), {}, Path('made_up'), Problems())
        found[f'{minutes}_min_cpu_s'] = round(time.process_time() - started, 3)
        assert len(made) == minutes * EPISODES_A_MINUTE
    return {**found, 'exponent': exponent(found, 'min_cpu_s')}


def exponent(found: dict[str, Any], ending: str) -> float:
    """Slope between the two largest on logarithmic axes."""
    points = [(int(name.partition('_')[0]), value) for name, value in found.items() if name.endswith(ending)]
    (first, small), (last, large) = points[-2:]
    return round(math.log(large / small) / math.log(last / first), 3)


def write_index(contract: Contract, folder: Path, count: int) -> None:
    """An index of `count` recordings of one episode each."""
    shared = folder / 'shared'
    shared.mkdir(parents=True)
    done, picture = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8))
    assert done
    arrays: dict[str, Any] = {
        'stamps': START_NS + np.arange(STEPS) * contract.step_ns,
        'state': np.zeros((STEPS, len(contract.state))),
        'actions': np.zeros((STEPS, len(contract.actions))),
        **{name: np.ones(STEPS, dtype=bool) for name in ('valid', 'action_valid')},
        **{name: np.zeros(STEPS, dtype=np.int32) for name in ('text', 'subtask')},
    }
    for camera in contract.camera_names:
        (shared / f'{camera}.images').write_bytes(picture.tobytes())
        arrays[f'{camera}.stamp'] = arrays['stamps']
        arrays[f'{camera}.offset'] = np.zeros(STEPS, dtype=np.int64)
        arrays[f'{camera}.length'] = np.full(STEPS, picture.size)
    held = io.BytesIO()
    np.savez(held, **arrays)
    (shared / 'episode_000.npz').write_bytes(held.getvalue())
    files = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in shared.iterdir()}
    about = {'file': 'episode_000.npz', 'steps': STEPS, 'start_ns': START_NS, 'outcome': 'success'}
    about |= {'texts': ['lift the cup', ''], 'runs': [[0, STEPS]], 'human': []}
    rows = []
    (folder / 'bags').mkdir()
    for number in range(count):
        key = f'{number:016x}'
        (folder / 'bags' / key).symlink_to(shared)
        digest = hashlib.sha256(key.encode()).hexdigest()
        row = {'path': f'/made/up/{key}', 'signature': [['a.mcap', 100, 1]], 'key': key, 'sha256': digest}
        rows.append({**row, 'messages': 100, 'episodes': [about], 'streams': {}, 'problems': [], 'files': files})
    _write_index(folder, contract, IndexOptions(), rows)


def first_batch(folder: Path) -> dict[str, float]:
    """What a trainer does before its first step: open, split, note where the data are from, draw 32 samples."""
    started, before = time.perf_counter(), time.process_time()
    index = load_index(folder)
    opened = time.process_time()
    train, _ = split_episodes(index, 0.1)
    data = EpisodeDataset(index, episodes=train)
    provenance(data)
    loader = Loader(Sampler(Mixture([Part('data', data)])), 32, _images, workers=2, steps=1)
    assert [len(batch) for batch in loader] == [32]
    return {
        'open_cpu_s': round(opened - before, 3),
        'first_batch_cpu_s': round(time.process_time() - before, 3),
        'first_batch_wall_s': round(time.perf_counter() - started, 1),
        'peak_rss_mb': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        'samples': len(data),
    }


def _images(draws: list[Draw]) -> list[Any]:
    return [draw.sample.images for draw in draws]


def opening(contract: Contract, most: int) -> dict[str, Any]:
    """Each size in a process of its own, so that its memory is its own."""
    found: dict[str, Any] = {'steps_an_episode': STEPS}
    for count in (size for size in (1_000, 10_000, 100_000) if size <= most):
        with tempfile.TemporaryDirectory() as name:
            write_index(contract, Path(name), count)
            said = subprocess.run(
                [sys.executable, __file__, '--open', name], check=True, capture_output=True, text=True
            )
        found |= {f'{count}_{key}': value for key, value in json.loads(said.stdout).items()}
    first_batch = exponent(found, 'first_batch_cpu_s')
    return {**found, 'open_exponent': exponent(found, 'open_cpu_s'), 'exponent': first_batch}


def main() -> None:
    """Measures both and writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--most', type=int, default=100_000, help='episodes')
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'growth.json')
    parser.add_argument('--open', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(first_batch(options.open)))
        return
    contract = load_contract('bimanual_mobile')
    found = {
        'cores': os.cpu_count(),
        'load_before': round(os.getloadavg()[0], 1),
        'cutting': cutting(contract),
        'opening': opening(contract, options.most),
        'load_after': round(os.getloadavg()[0], 1),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
