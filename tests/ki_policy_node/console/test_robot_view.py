"""What the page shows of an episode that the recorder ended by itself, and of clocks that are apart."""

from __future__ import annotations

import pytest

pytest.importorskip('ki_msgs', reason='ki_msgs is not built: `make setup` builds it')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from ki_msgs.msg import EpisodeMarker, ExecutorStatus

from ki_policy_node.common.diagnostics import ERROR, OK
from ki_policy_node.console.robot_view import RobotView
from ki_robot.contract.contract import load_contract
from ki_robot.messages.arrays import set_time

FULL = 'Episode 3 ended by itself: 900 MiB are free on the disk.'


SECOND_NS = 1_000_000_000


def said(level: bytes, message: str, name: str = 'arm1/recorder: recording') -> DiagnosticArray:
    return DiagnosticArray(status=[DiagnosticStatus(level=level, name=name, message=message)])


def test_an_episode_that_ended_for_lack_of_space_says_so_until_the_next_begins() -> None:
    view = RobotView(load_contract('arm_single'))
    assert view.state(0)['episode'] == {'recording': False, 'ended': ''}
    view.on_episode(EpisodeMarker(phase=EpisodeMarker.PHASE_END, episode_index=3, task='tidy'))
    view.on_diagnostics(said(ERROR, 'of another robot', 'arm2/recorder: recording'), 'arm1/recorder')
    assert view.state(0)['episode']['ended'] == ''
    view.on_diagnostics(said(ERROR, FULL), 'arm1/recorder')
    assert view.state(0)['episode'] == {'recording': False, 'index': 3, 'task': 'tidy', 'ended': FULL}
    view.on_episode(EpisodeMarker(phase=EpisodeMarker.PHASE_START, episode_index=4, task='tidy'))
    assert view.state(0)['episode'] == {'recording': True, 'index': 4, 'task': 'tidy', 'ended': ''}
    view.on_diagnostics(said(OK, 'records episode 4: tidy'), 'arm1/recorder')
    view.on_episode(EpisodeMarker(phase=EpisodeMarker.PHASE_END, episode_index=4, task='tidy'))
    assert view.state(0)['episode']['ended'] == ''


@pytest.mark.parametrize(
    ('ahead_ns', 'words'),
    [
        (0, ''),
        (5_000_000, ''),
        (200_000_000, "The policy's clock is 0.200 s ahead of this one; synchronise them (chrony, PTP)."),
        (-200_000_000, "The policy's clock is 0.200 s behind this one; synchronise them (chrony, PTP)."),
    ],
)
def test_clocks_that_are_apart_are_shown_in_numbers_and_words(ahead_ns: int, words: str) -> None:
    view = RobotView(load_contract('arm_single'))
    status = ExecutorStatus()
    set_time(status.policy_clock_ahead, ahead_ns)
    view.on_executor(status, SECOND_NS)
    shown = view.state(SECOND_NS)['executor']
    assert (shown['clock_ahead'], shown['clocks']) == (ahead_ns / 1e6, words)
