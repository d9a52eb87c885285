"""`ki demo`: one episode through the whole stack as a user starts it, and what stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ki.commands import demo
from ki.stack import pace
from ki_bags.reader import open_bag
from ki_common.errors import KiError

Ki = Callable[..., subprocess.CompletedProcess[str]]
SMALL = ('--task', 'demo', '--image-size', '64', '--no-real')
SEED = 1_000_000


def left_over(out: Path) -> list[str]:
    """Processes that still have something to do with a folder."""
    found = []
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            command = path.read_bytes().decode(errors='replace')
            environment = path.with_name('environ').read_bytes().decode(errors='replace')
        except OSError:
            continue
        if f'DEMO_TEST={out}' in environment and 'ki_' in command and int(path.parent.name) != os.getpid():
            found.append(command.replace('\0', ' '))
    return found


@pytest.mark.ros
def test_an_episode_ends_with_a_report_that_tells_it_and_a_bag_that_holds_it(
    ki_process: Ki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plotly: Callable[[str], str]
) -> None:
    from ki_sim.evaluate.demo_episodes import choose

    out = tmp_path / 'shown'
    monkeypatch.setenv('DEMO_TEST', str(out))
    # By the simulator's clock: what a busy machine does to the expert in real time is not asked here.
    done = ki_process('demo', '--episodes', 1, '--seed', SEED, '--out', out, '--pace', 'stepped', *SMALL, timeout=180.0)
    assert done.returncode == 0, done.stdout + done.stderr
    (choice,) = choose(1, ['demo'], SEED)
    assert choice.instruction in done.stdout
    assert 'No trained policy drives here' in ' '.join(done.stdout.split())

    numbers = json.loads((out / 'demo.json').read_text())
    (outcome,), (counted,) = numbers['outcomes'], numbers['episodes']
    assert outcome['success'] is True
    assert outcome['instruction'] == choice.instruction
    assert counted['chunks'] > 3
    assert len(counted['rates_hz']) > 8
    page = without_plotly((out / 'report.html').read_text())
    assert choice.instruction in page
    assert '>success<' in page
    assert '1 of 1' in page
    assert 'No trained policy drives here' in page
    assert 'src="data:image/gif' in page
    assert 'src="http' not in page
    assert (out / 'demo.gif').read_bytes().startswith(b'GIF89a')

    said = ''.join(path.read_text() for path in out.glob('nodes*.log'))
    assert 'Traceback' not in said
    assert 'Warning' not in said, 'of Python; the nodes have words of their own'

    bag = open_bag(outcome['bag'])
    counts = {name: topic.count or 0 for name, topic in bag.topics.items()}
    steps = outcome['seconds'] * 20
    assert counts['/joint_states'] > 4 * steps
    for camera in ('head', 'left_wrist', 'right_wrist'):
        assert counts[f'/{camera}_camera/image_raw/compressed'] > 10
    assert counts['/policy_node/action_chunk'] == counted['chunks']
    assert counts['/left_arm_controller/joint_trajectory'] > 10
    assert left_over(out) == []


@pytest.mark.ros
def test_the_shipped_policy_drives_through_its_node(
    ki_process: Ki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / 'shown'
    monkeypatch.setenv('DEMO_TEST', str(out))
    policy = Path(__file__).resolve().parents[3] / 'bundles' / 'demo'
    done = ki_process('demo', '--bundle', policy, '--episodes', 1, '--out', out, '--no-real', timeout=120.0)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'driven by the policy {policy}' in ' '.join(done.stdout.split())
    numbers = json.loads((out / 'demo.json').read_text())
    assert numbers['outcomes'][0]['error'] == ''
    said = ''.join(path.read_text() for path in out.glob('nodes*.log'))
    assert 'Traceback' not in said
    assert 'Warning' not in said
    assert 'hardly move' not in said
    assert numbers['episodes'][0]['chunks'] > 3
    assert 'No trained policy drives here' not in (out / 'report.html').read_text()
    assert left_over(out) == []


@pytest.mark.slow
@pytest.mark.ros
def test_a_machine_that_is_too_slow_goes_on_with_a_slower_simulator(
    ki: Ki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ros_domain: int
) -> None:
    out = tmp_path / 'shown'
    monkeypatch.setenv('DEMO_TEST', str(out))
    monkeypatch.setattr(pace, 'LEAST_FACTOR', 2.0)  # real time is too slow for it
    done = ki('demo', '--episodes', 2, '--seed', SEED, '--out', out, *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'This machine is too slow for real time: a second of simulation took' in ' '.join(done.stdout.split())
    numbers = json.loads((out / 'demo.json').read_text())
    assert numbers['outcomes'][-1]['speed'] < 1.0
    assert numbers['outcomes'][-1]['success'] is True
    assert 'by the clock of the simulator' in (out / 'report.html').read_text()
    assert left_over(out) == []


@pytest.mark.ros
def test_ctrl_c_ends_every_process_and_leaves_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / 'shown'
    monkeypatch.setenv('DEMO_TEST', str(out))
    command = [sys.executable, '-m', 'ki.main', 'demo', '--episodes', '3', '--out', str(out), *SMALL]
    # A shell that runs the tests in the background has them, and all that they start, ignore Ctrl-C.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, preexec_fn=heard)
    end = time.monotonic() + 120.0
    while 'chunk_executor]: run' not in (out / 'nodes.log').read_text() if (out / 'nodes.log').exists() else True:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)  # it writes its report first
    assert process.returncode == 130, said
    numbers = json.loads((out / 'demo.json').read_text())
    assert [each['outcome'] for each in numbers['episodes']] == ['interrupted']
    assert open_bag(numbers['episodes'][0]['bag']).topics['/joint_states'].count
    assert 'interrupted' in (out / 'report.html').read_text()
    assert left_over(out) == []


@pytest.mark.ros
def test_a_domain_with_another_stack_in_it_is_left_alone(ki_process: Ki, tmp_path: Path) -> None:
    from ki_policy_node.common import ros

    with ros.node('chunk_executor'):
        done = ki_process('demo', '--episodes', 1, '--out', tmp_path / 'shown', *SMALL, timeout=60.0)
    assert done.returncode == 2
    assert 'is busy: chunk_executor is running there' in done.stderr
    assert 'ROS_DOMAIN_ID' in done.stderr
    assert not (tmp_path / 'shown' / 'report.html').exists()


def test_where_nothing_can_be_drawn_one_sentence_says_so(
    ki_process: Ki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MUJOCO_GL', 'off')
    done = ki_process('demo', '--out', tmp_path / 'shown')
    assert done.returncode == 2
    assert done.stderr.startswith('ki: MUJOCO_GL=off switches rendering off')
    assert 'Traceback' not in done.stderr


def test_a_folder_with_something_else_in_it_is_not_touched(ki: Ki, tmp_path: Path) -> None:
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'thesis.txt').write_text('precious')
    done = ki('demo', '--out', tmp_path / 'mine')
    assert done.returncode == 2
    assert 'holds something else' in done.stderr
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['thesis.txt']


def test_a_bundle_that_cannot_be_read_costs_no_earlier_demonstration(tmp_path: Path) -> None:
    out, bundle = tmp_path / 'shown', tmp_path / 'bundle'
    for folder in (out, bundle):
        folder.mkdir()
    for name in ('demo.json', 'report.html'):
        (out / name).write_text('{}')
    done = CliRunner().invoke(demo.app, ['--bundle', str(bundle), '--out', str(out)])
    assert isinstance(done.exception, KiError)
    assert 'manifest.json' in str(done.exception)
    assert sorted(path.name for path in out.iterdir()) == ['demo.json', 'report.html']


def test_a_bundle_or_task_that_is_not_there_is_named(ki: Ki, tmp_path: Path) -> None:
    done = ki('demo', '--bundle', tmp_path / 'nowhere')
    assert done.returncode == 2
    assert 'There is no bundle' in done.stderr
    done = ki('demo', '--bundle', tmp_path, '--expert')
    assert done.returncode == 2
    assert 'only one can drive' in done.stderr
    done = ki('demo', '--task', 'iron')
    assert done.returncode == 2
    assert "task is 'iron'; write one of demo" in done.stderr


def test_the_last_words_of_a_program_are_found_in_the_common_log(tmp_path: Path) -> None:
    from ki.stack.sim_stack import last_words

    log = tmp_path / 'nodes.log'
    log.write_text(
        '1.0 sim_robot | begins\n2.0 sim_robot | no OpenGL: install it\n3.0  recorder | hears nothing\n4.0 x | \n'
    )
    assert last_words(log, 'sim_robot') == 'It said: no OpenGL: install it '
    assert last_words(log, 'x') == ''
