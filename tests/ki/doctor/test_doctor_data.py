"""`ki doctor data` on recordings, against a bundle, against other recordings, and against a robot that is there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_common.errors import KiError
from ki_robot.contract.contract import Contract
from training.index.index import index_bags

Ki = Callable[..., subprocess.CompletedProcess[str]]
START_NS = 1_700_000_000_000_000_000
JOINTS = ['joint1', 'joint2', 'gripper']


def run(*arguments: object) -> Result:
    from ki.commands.doctor import app

    return CliRunner().invoke(app, [str(each) for each in ('data', *arguments)])


@pytest.fixture(scope='module')
def small(rigs: ModuleType) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.fixture
def record(small: Contract) -> Callable[..., Path]:
    """Writes a recording of the small robot; `at` gives joint1, joint2 and gripper at a time [s]."""

    def make(folder: Path, at: Callable[[float], Any], seconds: float = 4.0) -> Path:
        arm, hand, base = small.outputs
        pixels = np.random.default_rng(0).integers(0, 255, (24, 32, 3)).astype(np.uint8)
        with BagWriter(folder, custom={'task': folder.name}) as bag:
            for tick in range(round(seconds * 60) + 1):
                now = START_NS + round(tick / 60 * 1e9)
                values = np.asarray(at(tick / 60), dtype=np.float64)
                message_builders.put(bag, 'joint_states', now, message_builders.joint_state(now, JOINTS, values))
                if tick % 2 == 0:
                    picture = np.roll(pixels, tick, axis=1)
                    message_builders.put(bag, 'scene/image_raw/compressed', now, message_builders.picture(now, picture))
                    message_builders.put(bag, 'wrist/image_raw', now, message_builders.raw(now, picture))
                if tick % 3 == 0:
                    for output, told in ((arm, values[:2]), (hand, values[2:]), (base, [0.4 * np.sin(tick / 30)])):
                        message_builders.put(bag, output.topic, now, message_builders.command(output, now, told))
        return folder

    return make


def swing(seconds: float) -> list[float]:
    return [np.sin(seconds), np.cos(2.0 * seconds), 1.5 * np.sin(3.0 * seconds)]


@pytest.fixture
def trained(record: Callable[..., Path], small: Contract, tmp_path: Path) -> Path:
    """Two recordings with different words, indexed."""
    for name, reach in (('lift', 6.0), ('push', 5.0)):
        record(tmp_path / 'bags' / name, swing, reach)
    index_bags(tmp_path / 'bags', small, tmp_path / 'bags' / 'index')
    return tmp_path / 'bags'


def test_sound_recordings_are_found_sound(trained: Path) -> None:
    result = run(trained)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith(('Nothing suspicious', 'Usable'))
    plain = json.loads(run(trained, '--json').stdout)
    assert plain['serious'] is False
    assert plain['columns'] == []
    assert not [each for each in plain['findings'] if each['level'] == 'error']


def test_recordings_from_elsewhere_are_indexed_and_compared(
    trained: Path, record: Callable[..., Path], tmp_path: Path
) -> None:
    same = run(trained, '--against', record(tmp_path / 'same', swing), '--json')
    assert same.exit_code == 0, same.output
    assert (tmp_path / 'same.index' / 'index.json').is_file()
    plain = json.loads(same.stdout)
    assert [row['column'] for row in plain['columns']] == [f'{joint}/position' for joint in JOINTS]
    assert not any(row['level'] for row in plain['columns'])
    assert max(row['outside'] for row in plain['columns']) < 0.2

    other = record(tmp_path / 'other', lambda s: [np.rad2deg(np.sin(s)), np.cos(s), 1.9])
    result = run(trained, '--against', other)
    assert result.exit_code == 1
    assert 'looks like degrees' in result.output
    assert result.output.splitlines()[-1].startswith('Seriously wrong (1 error): fix it before a policy runs here')


def test_a_bundle_stands_for_the_data_it_was_trained_on(trained: Path, small: Contract, tmp_path: Path) -> None:
    from ki_vla.policy.untrained import write_untrained

    write_untrained(tmp_path / 'bundle', small)  # its statistics reach from -1 to 1, the gripper from -1.5 to 1.5
    plain = json.loads(run(trained, '--bundle', tmp_path / 'bundle', '--json').stdout)
    rows = {row['column']: row for row in plain['columns']}
    assert 'compared with untrained@' in plain['compared']
    assert rows['joint1/position']['outside'] == 0.0
    assert rows['gripper/position']['outside'] > 0.4
    assert rows['gripper/position']['level'] == 'warning'


def test_without_anything_to_look_at_it_says_so(trained: Path) -> None:
    for words, said in (
        ((), 'there is nothing to look at'),
        (('--bundle', trained), 'a bundle is compared with something'),
        ((trained, '--live', '--against', trained), 'choose one of them'),
        ((trained / 'nothing',), 'run `ki data index` first'),
    ):
        result = run(*words)
        assert isinstance(result.exception, KiError)
        assert said in str(result.exception)


@pytest.mark.ros
def test_a_live_robot_is_compared_with_its_recordings(rig: Any, trained: Path) -> None:
    from ki.doctor.doctor_data import LiveSource, report

    live = LiveSource(seconds=2.0, wait_s=20.0, namespace='', sim_time=False)
    made = report(trained, None, None, live)
    rows = {row.column: row for row in made.differences}
    # It rests at zero, which is the middle of what was recorded.
    assert [rows[f'{joint}/position'].level for joint in JOINTS] == ['', '', '']
    assert rows['joint1/position'].mean == 0.0
    assert 'states of the live robot' in made.compared

    rig.robot.positions['joint1/position'] = 57.3
    rig.robot.silent.add('wrist')
    made = report(trained, None, None, live)
    row = next(row for row in made.differences if row.column == 'joint1/position')
    assert row.level == 'error'
    assert row.outside == 1.0
    assert 'looks like degrees' in row.text
    assert ('wrist', 'never_received', 'error') in {(each.field, each.kind, each.level) for each in made.findings}
    assert made.is_serious


@pytest.mark.ros
def test_a_robot_that_is_not_there_is_serious(ki: Ki, trained: Path) -> None:
    done = ki('doctor', 'data', trained, '--live', '--wait', 0.5)
    assert done.returncode == 1, done.stderr
    assert 'joint_states: nothing came on joint_states; is its driver running' in done.stdout
    assert done.stdout.splitlines()[-1].startswith('Seriously wrong')


def test_findings_are_written_for_people_for_ci_and_for_training(
    record: Callable[..., Path], small: Contract, tmp_path: Path
) -> None:
    """Joint 1 in degrees: a page with its curve, SARIF with its recording, a list that a run takes."""
    record(tmp_path / 'bags' / '<b>lift', lambda s: [57.3 * swing(s)[0], *swing(s)[1:]], 5.0)
    small = small.replace(state=tuple(column.replace(limits={}) for column in small.state))
    index_bags(tmp_path / 'bags', small, tmp_path / 'bags' / 'index')
    files = {name: tmp_path / f'out.{name}' for name in ('html', 'sarif', 'trim')}
    result = run(tmp_path / 'bags', *(part for name, file in files.items() for part in (f'--{name}', file)))
    assert result.exit_code == 1, result.output
    page = files['html'].read_text()
    assert 'degrees' in page
    assert 'data:image/png;base64,' in page
    assert '<b>lift' not in page, 'a name is text'
    sarif = json.loads(files['sarif'].read_text())
    assert sarif['version'] == '2.1.0'
    [made] = sarif['runs']
    rules = [rule['id'] for rule in made['tool']['driver']['rules']]
    assert {rules[each['ruleIndex']] for each in made['results']} == {each['ruleId'] for each in made['results']}
    assert {each['level'] for each in made['results']} <= {'error', 'warning', 'note'}
    assert all(each['locations'] for each in made['results'])
    assert 'sha256' in files['trim'].read_text()
