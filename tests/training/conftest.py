from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract

RATE_HZ, IMAGE_HZ = 100, 30
BASE = ('base/linear/x/velocity',)
START_NS = 1_700_000_000_000_000_000
CONTRACT = {
    'name': 'toy',
    'rate_hz': 20.0,
    'horizon': 8,
    'image_size': 32,
    'cameras': [
        {
            'name': 'scene',
            'topic': 'scene/image_raw/compressed',
            'transport': 'compressed',
            'kind': 'scene',
            'max_age_s': 0.2,
        },
        {
            'name': 'wrist',
            'topic': 'wrist/image_raw/compressed',
            'transport': 'compressed',
            'kind': 'wrist',
            'max_age_s': 0.2,
            'required': False,
        },
    ],
    'state_streams': [
        {'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': 0.1},
        {'name': 'odom', 'topic': 'odom', 'type': 'odometry', 'max_age_s': 0.2},
    ],
    'state': [
        {'name': 'joint1/position', 'unit': 'rad', 'source': 'joint_states'},
        {'name': 'joint2/position', 'unit': 'rad', 'source': 'joint_states'},
        {'name': 'gripper/position', 'unit': 'm', 'source': 'joint_states'},
        {'name': 'base/linear/x/velocity', 'unit': 'm/s', 'source': 'odom'},
    ],
    'actions': [
        {
            'name': 'joint1/position',
            'unit': 'rad',
            'representation': 'delta',
            'limits': {'lower': -3.0, 'upper': 3.0, 'velocity': 3.0},
        },
        {
            'name': 'joint2/position',
            'unit': 'rad',
            'representation': 'delta',
            'limits': {'lower': -3.0, 'upper': 3.0, 'velocity': 3.0},
        },
        {
            'name': 'gripper/position',
            'unit': 'm',
            'representation': 'absolute',
            'limits': {'lower': 0.0, 'upper': 0.08, 'velocity': 0.5},
        },
        {
            'name': 'base/linear/x/velocity',
            'unit': 'm/s',
            'representation': 'absolute',
            'limits': {'lower': -1.0, 'upper': 1.0, 'velocity': 1.0, 'acceleration': 2.0},
        },
    ],
    'outputs': [
        {
            'name': 'arm',
            'kind': 'joint_trajectory',
            'topic': 'arm_controller/joint_trajectory',
            'columns': ['joint1/position', 'joint2/position'],
            'options': {'window_s': 0.3, 'interpolation': 'cubic'},
        },
        {
            'name': 'gripper',
            'kind': 'forward_command',
            'topic': 'gripper_controller/commands',
            'columns': ['gripper/position'],
        },
        {
            'name': 'base',
            'kind': 'twist_stamped',
            'topic': 'base_controller/cmd_vel',
            'columns': ['base/linear/x/velocity'],
            'frame_id': 'base_link',
        },
    ],
}


def jpeg(value: int, size: tuple[int, int] = (24, 32)) -> np.ndarray:
    """A ramp whose brightness says which picture it is."""
    ramp = np.linspace(0, 100, size[1]).astype(np.uint8)[None, :, None]
    return cv2.imencode('.jpg', np.broadcast_to(ramp + np.uint8(value % 128), (*size, 3)))[1].reshape(-1)


def joints_at(seconds: np.ndarray | float) -> np.ndarray:
    """Measured joint1, joint2, gripper."""
    s = np.asarray(seconds, dtype=np.float64)
    return np.stack([np.sin(s), np.cos(s / 2), 0.04 + 0.03 * np.sin(s)], axis=-1)


class Scribe:
    """Writes the topics of the toy robot, message by message."""

    def __init__(self, bag: BagWriter, without: tuple[str, ...] = ()) -> None:
        self.bag = bag
        self.without = without
        self.contract = Contract.parse(CONTRACT)

    def send(self, topic: str, log_ns: int, value: Any) -> None:
        if topic not in self.without:
            message_builders.put(self.bag, topic, log_ns, value)

    def joints(
        self, time_ns: int, values: Any, names: tuple[str, ...] = ('gripper', 'joint1', 'joint2'), log_ns: int = 0
    ) -> None:
        """`values` are joint1, joint2, gripper; the message lists them in another order."""
        by_name = dict(zip(('joint1', 'joint2', 'gripper'), values, strict=False))
        position = [by_name.get(name, 0.0) for name in names]
        self.send('/joint_states', log_ns or time_ns, message_builders.joint_state(time_ns, names, position))

    def odom(self, time_ns: int, speed: float, log_ns: int = 0) -> None:
        self.send('/odom', log_ns or time_ns, message_builders.odometry(time_ns, BASE, [speed]))

    def image(self, camera: str, time_ns: int, data: np.ndarray, log_ns: int = 0) -> None:
        self.send(f'/{camera}/image_raw/compressed', log_ns or time_ns, message_builders.compressed(time_ns, data))

    def arm(self, log_ns: int, points: list[tuple[float, float, float]]) -> None:
        """Points are (seconds from start, joint1, joint2); joints are named in reverse."""
        times_ns = [round(seconds * 1e9) for seconds, _, _ in points]
        positions = [[second, first] for _, first, second in points]
        value = message_builders.trajectory(0, ['joint2', 'joint1'], times_ns, positions)
        self.send('/arm_controller/joint_trajectory', log_ns, value)

    def gripper(self, log_ns: int, opening: float) -> None:
        self.send('/gripper_controller/commands', log_ns, self.command('gripper', 0, opening))

    def base(self, time_ns: int, speed: float, log_ns: int = 0) -> None:
        self.send('/base_controller/cmd_vel', log_ns or time_ns, self.command('base', time_ns, speed))

    def command(self, name: str, time_ns: int, value: float) -> Any:
        output = next(each for each in self.contract.outputs if each.name == name)
        return message_builders.command(output, time_ns, [value])

    def marker(self, time_ns: int, phase: int, index: int, task: str = 'lift the cup', outcome: int = 1) -> None:
        self.send('/episode', time_ns, message_builders.marker(time_ns, phase, index, task, outcome))

    def say(self, topic: str, time_ns: int, text: str) -> None:
        self.send(topic, time_ns, message_builders.instruction(time_ns, text))

    def stretch(
        self, seconds: float, begin_s: float = 0.0, base_ns: int = START_NS, log_base_ns: int | None = None
    ) -> None:
        """All streams of the robot for a while; commands lead the measured joints by 0.1 s.

        Events are written in the order of time; `log_base_ns` dates the log by another clock than the stamps.
        """
        events: list[tuple[float, int, int]] = []
        for kind, rate in enumerate((RATE_HZ, 50, IMAGE_HZ, IMAGE_HZ, 20, 20, 20)):
            events += [(begin_s + index / rate, kind, index) for index in range(round(seconds * rate) + 1)]
        for when, kind, index in sorted(events):
            time_ns = base_ns + round(when * 1e9)
            log_ns = time_ns if log_base_ns is None else log_base_ns + round(when * 1e9)
            ahead = joints_at(when + 0.1)
            if kind == 0:
                self.joints(time_ns, joints_at(when), log_ns=log_ns)
            elif kind == 1:
                self.odom(time_ns, 0.1 * np.cos(when), log_ns)
            elif kind in (2, 3):
                self.image('scene' if kind == 2 else 'wrist', time_ns, jpeg(index), log_ns)
            elif kind == 4:
                self.arm(log_ns, [(0.0, ahead[0], ahead[1])])
            elif kind == 5:
                self.gripper(log_ns, float(ahead[2]))
            else:
                self.base(time_ns, 0.1, log_ns)


@pytest.fixture
def toy_contract() -> dict[str, Any]:
    return CONTRACT


@pytest.fixture
def toy() -> Contract:
    return Contract.parse(CONTRACT)


@pytest.fixture
def scribe() -> type[Scribe]:
    return Scribe


@pytest.fixture
def make_bag(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recording of the toy robot: `seconds` long, one marked episode, unless told otherwise."""

    def make(
        name: str = 'bag',
        seconds: float = 2.0,
        marked: bool = True,
        outcome: int = 1,
        without: tuple[str, ...] = (),
        custom: dict[str, str] | None = None,
        task: str = 'lift the cup',
        folder: Path | None = None,
    ) -> Path:
        path = (folder or tmp_path / 'bags') / name
        with BagWriter(path, custom=custom) as bag:
            writer = Scribe(bag, without)
            if marked:
                writer.marker(START_NS, 0, 0, task)
            writer.stretch(seconds)
            if marked:
                writer.marker(START_NS + round(seconds * 1e9), 1, 0, task, outcome)
        return path

    return make


@pytest.fixture
def pictures() -> Callable[[int], np.ndarray]:
    return jpeg


@pytest.fixture
def truth() -> Callable[[Any], np.ndarray]:
    return joints_at


@pytest.fixture
def arrays_folder(tmp_path: Path, toy: Contract) -> Path:
    """Three recordings as the simulator writes them without ROS, of the toy robot."""
    folder = tmp_path / 'arrays'
    folder.mkdir()
    for number in range(3):
        steps = 24
        seconds = np.arange(steps) / 20.0 + number
        state = np.concatenate([joints_at(seconds), 0.1 * np.cos(seconds)[:, None]], axis=1)
        action = np.concatenate([joints_at(seconds + 0.05), 0.1 * np.cos(seconds + 0.05)[:, None]], axis=1)
        pictures = [jpeg(3 * step + 40 * view, (32, 32)) for step in range(steps) for view in range(2)]
        ends = np.cumsum([len(each) for each in pictures]).reshape(steps, 2)
        starts = np.concatenate([[0], ends[:-1, -1]])[:, None]
        np.savez(
            folder / f'demo-{number:06d}.npz',
            time_ns=np.arange(steps) * 50_000_000,
            state=state.astype(np.float32),
            action=action.astype(np.float32),
            subtask=(np.arange(steps) >= steps // 2).astype(np.int64),
            subtasks=np.array(['reach for the cup <loc0100><loc0200><loc0600><loc0700>', 'lift it']),
            jpeg=np.concatenate(pictures),
            offset=np.concatenate([starts, ends], axis=1),
            cameras=np.array(['scene', 'wrist']),
            columns=np.array(toy.state_names),
            meta=np.array('{"instruction": "lift the red cup", "success": true}'),
        )
    return folder


@pytest.fixture
def words_file(tmp_path: Path) -> Path:
    """A JSONL file of four pictures with a question, and one with a box."""
    folder = tmp_path / 'words'
    folder.mkdir()
    rows = []
    for number, colour in enumerate(('red', 'green', 'blue', 'white')):
        (folder / f'{number}.jpg').write_bytes(jpeg(30 * number, (32, 32)).tobytes())
        rows.append(
            f'{{"image": "{number}.jpg", "prompt": "what colour is it?", "answer": "{colour}", "kind": "colour"}}'
        )
    box = '<loc0100><loc0200><loc0600><loc0700>'
    rows.append(f'{{"image": "0.jpg", "prompt": "where is the cup?", "answer": "{box}", "kind": "box"}}')
    (folder / 'train.jsonl').write_text('\n'.join(rows) + '\n', encoding='utf-8')
    return folder / 'train.jsonl'


@pytest.fixture
def run_of(arrays_folder: Path, words_file: Path, tmp_path: Path) -> Callable[..., Any]:
    """Makes the configuration of a run of the tiny model on the toy robot's arrays; keywords replace fields."""
    import torch
    import yaml

    from training.train.config import Run

    torch.set_num_threads(1)
    (tmp_path / 'toy.yaml').write_text(yaml.safe_dump(CONTRACT), encoding='utf-8')

    def make(stage: dict[str, Any] | None = None, **changes: Any) -> Any:
        first = {'name': 'vla', 'steps': 6, 'batch': 4, 'actions': 1, 'vlm': 1, 'draws': 2, 'warmup': 2, 'ema': 0.9}
        values = {
            'name': 'toy',
            'out': str(tmp_path / 'run'),
            'robot': str(tmp_path / 'toy.yaml'),
            'preset': 'tiny',
            'data': {
                'arrays': str(arrays_folder),
                'vlm': str(words_file),
                'vlm_held': str(words_file),
                'validation': 0.3,
            },
            'tokens': {'text': 400, 'boxes': 16, 'actions': 256},
            'stages': [first | (stage or {})],
            'device': 'cpu',
            'bf16': False,
            'workers': 0,
            'log_every': 1,
            'save_every': 3,
            'validate_every': 3,
            'validate_batches': 1,
        }
        return Run.parse(values | changes)

    return make
