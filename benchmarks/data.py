"""How fast recordings become samples, next to plain decoding; indexing on 1 and 2 workers; LeRobot; loading.

    KI_DATA=... python benchmarks/data.py [--seconds 20] [--out benchmarks/results/data.json]

Rates per core are over CPU time, so that a busy machine changes them little; seconds named `wall` are not. With KI_DATA
the pictures are those of a real robot's camera, else they are made up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before the file training.py, which hides that room
os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_common.memory import keep_freed_memory
from ki_robot.contract.contract import Contract, load_contract
from training.index.episodes import IndexOptions
from training.index.index import Index, index_bags
from training.lerobot.to_bags import from_lerobot
from training.lerobot.write import to_lerobot
from training.samples.dataset import EpisodeDataset
from training.samples.mixture import Draw, Loader, Mixture, Part, Sampler

ROOT = Path(__file__).resolve().parent.parent
START_NS = 1_700_000_000_000_000_000
JOINT_HZ = 100
G1 = 'unitree_g1_lerobot_v21'  # recordings of a real robot, below KI_DATA


def pictures(count: int) -> list[np.ndarray]:
    """640 x 480 RGB: of a real robot where KI_DATA is, else noise on a ramp."""
    folder = os.environ.get('KI_DATA')
    if folder and Path(folder, G1).is_dir():
        from training.lerobot.read import LerobotDataset

        dataset = LerobotDataset(Path(folder, G1))
        clip = dataset.episode(1).clips['cam_high']
        return list(dataset.frames(clip, np.arange(count) / dataset.fps))
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 200, 640)[None, :, None] * np.ones((480, 1, 3))
    noise = cv2.resize(rng.normal(0, 20, (count, 60, 80)).transpose(1, 2, 0), (640, 480)).transpose(2, 0, 1)
    return [np.clip(ramp + each[..., None], 0, 255).astype(np.uint8) for each in noise]


def write_bag(path: Path, contract: Contract, seconds: float, quality: int = 90) -> Path:
    """A recording of `contract` with pictures at its rate, states at 100 Hz, commands at its rate."""
    shown = pictures(64)
    with BagWriter(path) as bag:
        message_builders.put(bag, 'episode', START_NS, message_builders.marker(START_NS, 0, 0, 'lift the cup'))
        number = 0
        for tick in range(int(seconds * JOINT_HZ)):
            time_ns = START_NS + tick * 10**9 // JOINT_HZ
            values = {name: float(np.sin(tick / 100 + place)) for place, name in enumerate(contract.state_names)}
            for stream in contract.state_streams:
                message_builders.put(
                    bag, stream.topic, time_ns, message_builders.state(contract, stream, time_ns, values)
                )
            if tick % round(JOINT_HZ / contract.rate_hz) == 0:
                for place, camera in enumerate(contract.cameras):
                    picture = shown[_played(len(shown), number + 20 * place)]
                    message_builders.put(
                        bag, camera.topic, time_ns, message_builders.picture(time_ns, picture, quality=quality)
                    )
                for output in contract.outputs:
                    command = message_builders.command(output, time_ns, np.full(len(output.columns), 0.05))
                    message_builders.put(bag, output.topic, time_ns, command)
                number += 1
        message_builders.put(bag, 'episode', time_ns, message_builders.marker(time_ns, 1, 0, 'lift the cup', 1))
    return path


def _played(count: int, number: int) -> int:
    """The picture of a film that is played forth and back: a camera's pictures resemble the ones before."""
    place = number % (2 * count - 2)
    return place if place < count else 2 * count - 2 - place


def again(path: Path, contract: Contract, out: Path) -> Index:
    """Indexes anew."""
    for each in out.glob('*'):
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    return index_bags(path, contract, out)


def plain(path: Path) -> None:
    """Plain rosbags: every message of the recording deserialised, every picture decoded."""
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    with AnyReader([path], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        for connection, _, data in reader.messages():
            decoded = reader.deserialize(data, connection.msgtype)
            if connection.msgtype == 'sensor_msgs/msg/CompressedImage':
                cv2.cvtColor(cv2.imdecode(decoded.data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def through(data: EpisodeDataset, order: Any) -> Callable[[], None]:
    """Reads samples one by one and keeps none: kept pictures would cost fresh memory, not decoding."""

    def read() -> None:
        for position in order:
            data[int(position)]

    return read


def best(work: dict[str, Callable[[], Any]], rounds: int = 3) -> dict[str, float]:
    """Least CPU seconds of each, taken in turns, so that a change of the machine's load meets all of them."""
    found = dict.fromkeys(work, float('inf'))
    for _ in range(rounds):
        for name, each in work.items():
            found[name] = min(found[name], cpu(each)[0])
    return found


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process, and the result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def reading(folder: Path, seconds: float) -> dict[str, Any]:
    """Bag -> samples against plain decoding of the same messages."""
    contract = load_contract('bimanual_mobile')
    path = write_bag(folder / 'bags' / 'one', contract, seconds)
    index = index_bags(path, contract, folder / 'index')
    data = EpisodeDataset(index, resize=False)
    steps = len(data)
    order = np.random.default_rng(0).permutation(steps)
    small_s, small = cpu(lambda: index_bags(path, contract, folder / 'small', IndexOptions(store='model')))
    took = best(
        {
            'plain': lambda: plain(path),
            'index': lambda: again(path, contract, folder / 'index'),
            'in order': through(data, range(steps)),
            'random': through(EpisodeDataset(index), order),
            'model size': through(EpisodeDataset(small), order),
        }
    )
    base, ours = steps / took['plain'], steps / (took['index'] + took['in order'])
    return {
        'cameras': 3,
        'picture': '640x480 JPEG quality 90',
        'steps': steps,
        'bag_mb': round(sum(each.stat().st_size for each in path.iterdir()) / 1e6, 1),
        'plain_rosbags_samples_per_core_s': round(base, 1),
        'ours_index_and_decode_samples_per_core_s': round(ours, 1),
        'ratio_to_plain': round(ours / base, 3),
        'indexing_alone_times_real_time': round(steps / contract.rate_hz / took['index'], 1),
        'indexed_in_order_samples_per_core_s': round(steps / took['in order'], 1),
        'indexed_random_resized_224_samples_per_core_s': round(steps / took['random'], 1),
        'stored_at_model_size_random_samples_per_core_s': round(steps / took['model size'], 1),
        'storing_at_model_size_times_real_time': round(steps / contract.rate_hz / small_s, 1),
    }


def all_cpu() -> float:
    """CPU seconds of this process and of all children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def workers(folder: Path, seconds: float) -> dict[str, Any]:
    """Wall time of indexing several recordings in one process and over processes."""
    contract = load_contract('bimanual_mobile')
    for number in range(6):
        write_bag(folder / 'many' / f'bag{number}', contract, seconds / 2)
    found: dict[str, Any] = {'recordings': 6, 'seconds_each': seconds / 2}
    for turn in range(2):  # in turns and the best: what else runs on the machine meets both
        for count in (1, 2):
            for store in ('original', 'model'):
                out = folder / f'many_{store}_{count}_{turn}'
                started, before = time.perf_counter(), all_cpu()
                index_bags(folder / 'many', contract, out, IndexOptions(store=store), workers=count)
                took = {'wall': time.perf_counter() - started, 'cpu': all_cpu() - before}
                for kind, seconds in took.items():
                    name = f'{store}_{count}_workers_{kind}_s'
                    found[name] = min(round(seconds, 2), found.get(name, float('inf')))
    for store in ('original', 'model'):
        one, two = found[f'{store}_1_workers_wall_s'], found[f'{store}_2_workers_wall_s']
        found[f'{store}_speed_up'] = round(one / two, 2)
        # What two workers compute in all against one: 2 over this is the speed-up of a machine with nothing else to do.
        found[f'{store}_cpu_ratio'] = round(found[f'{store}_2_workers_cpu_s'] / found[f'{store}_1_workers_cpu_s'], 2)
    return found


def lerobot(folder: Path, index: Index) -> dict[str, Any]:
    """Real-time factor per core of writing a dataset, one camera counted at a time."""
    steps = sum(about.steps for _, about in index.episodes)
    found: dict[str, Any] = {'cameras': len(index.contract.cameras), 'rate_hz': index.contract.rate_hz, 'steps': steps}
    for codec in ('h264', 'copy'):
        seconds, _ = cpu(lambda codec=codec: to_lerobot(index, folder / f'lerobot_{codec}', codec))
        duration = steps / index.contract.rate_hz
        found[f'{codec}_times_real_time_per_core'] = round(duration / seconds, 1)
        found[f'{codec}_pictures_per_core_s'] = round(steps * len(index.contract.cameras) / seconds, 1)
    return found


def real(folder: Path) -> dict[str, Any]:
    """The same on a real robot's recordings, where KI_DATA has them."""
    source = os.environ.get('KI_DATA', '')
    if not Path(source, G1).is_dir():
        return {'skipped': f'KI_DATA has no {G1}'}
    seconds, (contract, _) = cpu(lambda: from_lerobot(Path(source, G1), folder / 'g1', 'g1_upper_body', [1, 2]))
    index = index_bags(folder / 'g1', contract, folder / 'g1_index')
    steps = sum(about.steps for _, about in index.episodes)
    return {**lerobot(folder, index), 'from_lerobot_times_real_time_per_core': round(steps / 30 / seconds, 1)}


def stack(draws: list[Draw]) -> list[np.ndarray]:
    """What a collate does at the least: one array a camera."""
    cameras = sorted(draws[0].sample.images)
    return [np.stack([draw.sample.images[camera] for draw in draws]) for camera in cameras]


def waiting(index: Index, batch: int = 32, steps: int = 12) -> dict[str, Any]:
    """Share of the time that a trainer of a given speed waits for its batch; it computes on one core meanwhile."""
    import torch

    torch.set_num_threads(1)
    data = EpisodeDataset(index)
    matrix = torch.randn(512, 512)
    found: dict[str, Any] = {'batch': batch, 'picture': f'{index.contract.image_size} px', 'cameras': 3}

    def compute(seconds: float) -> None:
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            matrix.mm(matrix)

    for samples_per_s in (30, 60, 120):
        loader = Loader(Sampler(Mixture([Part('data', data)])), batch, stack, workers=1, ahead=3, steps=steps)
        started = None
        for _ in loader:
            started = started or time.perf_counter()
            compute(batch / samples_per_s)
        assert started is not None
        share = loader.wait_s / (time.perf_counter() - started)
        found[f'trainer_at_{samples_per_s}_samples_per_s_waits'] = round(share, 4)
    return found


def main() -> None:
    """Measures everything and writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=20.0)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'data.json')
    options = parser.parse_args()
    cv2.setNumThreads(1)
    keep_freed_memory()  # as the loader does; plain rosbags gets it too
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, Any] = {
            'machine': platform.processor() or platform.machine(),
            'cores': os.cpu_count(),
            'python': platform.python_version(),
            'load_before': round(os.getloadavg()[0], 1),
            'reading': reading(folder, options.seconds),
        }
        index = index_bags(folder / 'bags', load_contract('bimanual_mobile'), folder / 'again')
        found['to_lerobot_3_cameras'] = lerobot(folder / 'three', index)
        found['real_robot'] = real(folder / 'real')
        found['workers'] = workers(folder, options.seconds)
        model = index_bags(
            folder / 'bags', load_contract('bimanual_mobile'), folder / 'model', IndexOptions(store='model')
        )
        found['loader_original'] = waiting(index)
        found['loader_model_size'] = waiting(model)
        found['load_after'] = round(os.getloadavg()[0], 1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
