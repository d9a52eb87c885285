"""Live and from the bag: the same stamps give the same chunk, and what is not the same is told apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ki.commands import replay as replay_command
from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_common.errors import KiError
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.backends import Wanted, open_policy
from ki_policy_node.replay import live_parity
from ki_policy_node.replay.live_parity import LiveRun
from ki_policy_node.replay.replay import Replay, ReplayOptions, replay
from ki_robot.contract.contract import Contract

NS = 10**9
BEGIN = 1_700_000_000 * NS
TIMING = Timing('latest', execute_steps=5)


@pytest.fixture(scope='module')
def contract(rigs: ModuleType) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.fixture(scope='module')
def bundle(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights; every part real."""
    from ki_vla.policy.untrained import write_untrained

    folder = tmp_path_factory.mktemp('parity') / 'bundle'
    write_untrained(folder, contract)
    return folder


@pytest.fixture(scope='module')
def bag(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `write_bag` makes it."""
    return write_bag(tmp_path_factory.mktemp('parity') / 'bag', contract)


def write_bag(folder: Path, contract: Contract, late_ns: int = 0) -> Path:
    """Three seconds in a namespace: cameras at 20 Hz with new pictures, joints at 50 Hz; told to wave, then to bow.

    Joint states are logged `late_ns` after their stamp.
    """
    rng = np.random.default_rng(0)
    with BagWriter(folder) as writer:
        message_builders.put(writer, '/robot1/episode', BEGIN, message_builders.marker(BEGIN, 0, 0, 'wave'))
        for tick in range(150):
            now = BEGIN + tick * NS // 50
            values = dict.fromkeys(contract.state_names, 0.3 * tick / 50)
            joints = message_builders.state(contract, contract.state_streams[0], now, values)
            message_builders.put(writer, '/robot1/joint_states', now + late_ns, joints)
            if tick % 5 in (0, 2):
                pixels = rng.integers(0, 255, (24, 32, 3), np.uint8)
                message_builders.put(
                    writer, '/robot1/scene/image_raw/compressed', now + 2_000_000, message_builders.picture(now, pixels)
                )
                message_builders.put(
                    writer, '/robot1/wrist/image_raw', now + 3_000_000, message_builders.raw(now, pixels[::-1].copy())
                )
            if tick == 70:
                message_builders.put(
                    writer, '/robot1/instruction', now + 4_000_000, message_builders.instruction(now, 'bow')
                )
    return folder


@pytest.fixture
def policy(bundle: Path) -> Any:
    made = open_policy(Wanted('torch', str(bundle), allow_untrained=True), None, TIMING)
    yield made
    made.close()


def run(bag: Path, contract: Contract, policy: Any, **options: Any) -> Replay:
    return replay(bag, contract, policy, ReplayOptions(TIMING, instruction='wave', **options))


def test_new_words_are_planned_for_at_once_and_what_they_overtake_is_dropped(
    contract: Contract, bag: Path, policy: Any
) -> None:
    options = ReplayOptions(TIMING, latency_ns=260_000_000)
    found = replay(bag, contract, policy, options)
    said = [made.instruction for made in found.chunks]
    first = said.index('bow')
    assert said == ['wave'] * first + ['bow'] * (len(said) - first)
    told_ns = BEGIN + 1_404_000_000
    # In mid-inference: that chunk is for the old words, and the one for the new is begun when it is done.
    assert found.frames[first][0] - told_ns < options.latency_ns + options.frame_wait_ns
    assert list(found.dropped) == ['words, run or clock changed while it was made']


def heard_of(found: Replay) -> LiveRun:
    """A node that took the observations of another replay."""
    return LiveRun(tuple(made.planned.chunk for made in found.chunks), {'option': 'wave'})


def test_a_node_that_was_later_made_the_same_chunks_of_what_it_saw(contract: Contract, bag: Path, policy: Any) -> None:
    found, late = run(bag, contract, policy), run(bag, contract, policy, latency_ns=330_000_000)
    own, other = ({live_parity.key_of(made.planned.raw)[:2] for made in each.chunks} for each in (found, late))
    assert other - own, 'it looked at other moments'
    first = late.chunks[0].planned
    assert first.chunk.start_ns - first.raw.start_ns >= 330_000_000, 'the robot stood'
    numbers = live_parity.summary(live_parity.compare(found, heard_of(late), policy))
    assert numbers['both'] == len(late.chunks) >= 5
    assert numbers['only_live'] == []
    assert set(numbers['only_replay']) == {observation_ns for observation_ns, _ in own - other}
    assert (numbers['differing'], numbers['largest_difference']) == (0, 0.0)
    assert live_parity.failure(numbers) == ''


def test_a_node_with_another_seed_differs_in_every_chunk(
    contract: Contract, bag: Path, bundle: Path, policy: Any
) -> None:
    other = open_policy(Wanted('torch', str(bundle), seed=1, allow_untrained=True), None, TIMING)
    heard = heard_of(run(bag, contract, other))
    other.close()
    numbers = live_parity.summary(live_parity.compare(run(bag, contract, policy), heard, policy))
    assert numbers['differing'] == numbers['both'] > 0
    assert 'differ between the live node and the replay' in live_parity.failure(numbers)
    assert 'differ between' in live_parity.page_values(numbers)['said']


def test_one_value_that_differs_is_named_by_its_column(contract: Contract, bag: Path, policy: Any) -> None:
    found = run(bag, contract, policy)
    heard = heard_of(found)
    data_HN = heard.chunks[1].data_HN.copy()
    data_HN[7, 2] += 0.01
    spoilt = (heard.chunks[0], replace(heard.chunks[1], data_HN=data_HN), *heard.chunks[2:])
    numbers = live_parity.summary(live_parity.compare(found, replace(heard, chunks=spoilt), policy))
    assert numbers['differing'] == 1
    by_column = numbers['largest_difference_by_column']
    assert by_column.pop(contract.action_names[2]) == pytest.approx(0.01)
    assert set(by_column.values()) == {0.0}


def test_a_chunk_of_a_view_that_is_not_in_the_bag_is_only_live(contract: Contract, bag: Path, policy: Any) -> None:
    found = run(bag, contract, policy)
    heard = heard_of(found)
    strange = replace(heard.chunks[2], observation_ns=heard.chunks[2].observation_ns - 1)
    result = live_parity.compare(found, replace(heard, chunks=(*heard.chunks[:2], strange)), policy)
    assert (len(result.pairs), result.only_live) == (2, (strange.observation_ns,))
    with pytest.raises(NodeError, match=r'Of the 1 chunks .* not one rests on an observation .*--rate 0\.5'):
        live_parity.compare(found, replace(heard, chunks=(strange,)), policy)


def test_a_view_is_found_although_messages_overtook_each_other(
    contract: Contract, bag: Path, policy: Any, tmp_path: Path
) -> None:
    late_bag = write_bag(tmp_path / 'late', contract, late_ns=30_000_000)
    late = run(late_bag, contract, policy, frame_wait_ns=100_000_000)
    found = run(bag, contract, policy)
    wanted = {made.planned.raw.observation_ns: [made.planned.raw] for made in late.chunks}
    in_order = list(live_parity.views(found, wanted, depth=1))
    assert len(in_order) < len(late.chunks), 'the order of the bag does not explain them all'
    numbers = live_parity.summary(live_parity.compare(found, heard_of(late), policy))
    assert numbers['both'] == len(late.chunks) >= 5
    assert (numbers['only_live'], numbers['largest_difference']) == ([], 0.0)


def test_silence_and_another_policy_are_sentences(contract: Contract, bag: Path, policy: Any) -> None:
    found = run(bag, contract, policy)
    with pytest.raises(NodeError, match=r'published not one chunk .* It says: No instruction was given\.'):
        live_parity.compare(found, LiveRun((), {}, 'No instruction was given.'), policy)
    heard = heard_of(found)
    foreign = replace(heard, chunks=(replace(heard.chunks[0], policy_id='other@1'),))
    with pytest.raises(NodeError, match='runs policy other@1'):
        live_parity.compare(found, foreign, policy)


def ki(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'ki.main', 'replay', *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ.copy())


def set_parameter(name: str, value: bool) -> None:
    """Of the running policy node."""
    import rclpy
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    from ki_policy_node.common import ros
    from ki_policy_node.common.service_calls import ServiceCalls

    with ros.node('setter') as node:
        calls = ServiceCalls(node, lambda: rclpy.spin_once(node, timeout_sec=0.1))
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        answer = calls.call(SetParameters, 'policy_node/set_parameters', request, 30.0)
        assert answer.results[0].successful


@pytest.mark.ros
def test_a_bag_played_to_a_real_node_gives_the_chunks_of_the_replay(bag: Path, bundle: Path, tmp_path: Path) -> None:
    words = [bag, '--bundle', bundle, '--backend', 'torch', '--execute-steps', 5, '--out', tmp_path, '--live']
    done = ki(*words, '--fail-above', 100)
    # The bag holds no commands to err against, which --fail-above must not pass over; live and bag agree all the same.
    assert done.returncode == 1, done.stderr
    assert 'no recorded commands to compare with' in done.stdout
    assert 'chunks differ' not in done.stdout
    live = json.loads((tmp_path / 'replay.json').read_text())['live']
    assert live['both'] >= 1
    assert (live['differing'], live['largest_difference'] <= live_parity.TOLERANCE) == (0, True)
    page = (tmp_path / 'replay.html').read_text()
    assert '<h2>Live node and bag</h2>' in page
    assert f'all {live["both"]} chunks with the same stamps are equal' in page
    log = (tmp_path / 'live.log').read_text()
    assert 'instruction replay-1: wave' in log
    assert 'instruction replay-2: bow' in log


@pytest.mark.ros
def test_a_running_node_is_played_to_only_in_dry_run_with_the_same_seed(
    contract: Contract, bag: Path, bundle: Path, tmp_path: Path, rigs: ModuleType
) -> None:
    from ki_policy_node.replay.live_replay import play_live

    parameters = {'robot': bundle / 'contract.yaml', 'bundle': bundle, 'backend': 'torch', 'use_sim_time': True}
    parameters['allow_untrained'] = True
    parameters |= {'mode': 'latest', 'execute_steps': 5, 'dry_run': False}
    node = rigs.Process('ki_policy_node.policy.policy_node', tmp_path / 'node.log', parameters)
    try:
        with pytest.raises(NodeError, match='runs with dry_run False; a bag is played only to one with dry_run True'):
            play_live(bag, contract, 'policy_node', ReplayOptions(TIMING), {'seed': 0}, 1.0, str)
        set_parameter('dry_run', True)
        with pytest.raises(NodeError, match='runs with seed 0; a bag is played only to one with seed 3'):
            play_live(bag, contract, 'policy_node', ReplayOptions(TIMING), {'seed': 3}, 1.0, str)
        words = [bag, '--bundle', bundle, '--backend', 'torch', '--out', tmp_path, '--live', '--attach', 'policy_node']
        done = ki(*words)
    finally:
        node.end()
    assert done.returncode == 0, done.stderr + node.text()
    assert json.loads((tmp_path / 'replay.json').read_text())['live']['both'] >= 1


@pytest.mark.parametrize(
    ('words', 'told'),
    [
        (('--live', '--mode', 'rtc'), 'mode rtc carries the chunk before'),
        (('--live', '--backend', 'commissioning'), 'backend commissioning continues a motion'),
        (('--attach', 'policy_node'), 'add --live'),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_loaded(bag: Path, words: Any, told: str) -> None:
    done = CliRunner().invoke(replay_command.app, [str(bag), *map(str, words)])
    assert isinstance(done.exception, KiError)
    assert told in str(done.exception)
