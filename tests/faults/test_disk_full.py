"""The disk takes no more while an episode is recorded: it is said, what came before is there, and the robot runs on."""

from __future__ import annotations

import resource
import uuid

import pytest
from ki_msgs.msg import EpisodeMarker
from ki_msgs.srv import StartRecording, StopRecording

pytestmark = pytest.mark.ros


def test_a_full_disk_ends_the_episode_and_nothing_else(rig):
    rig.start_executor()
    rig.start_policy()
    rig.running()
    recorder = rig.start('recorder', folder=rig.folder / 'bags')
    request = StartRecording.Request(task='wave', request_id=uuid.uuid4().hex)
    assert rig.call(StartRecording, 'recorder/start_recording', request, 20.0).success
    resource.prlimit(recorder.popen.pid, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    rig.until('it is said', lambda: 'File too large' in recorder.text(), 30.0)
    stop = StopRecording.Request(outcome=EpisodeMarker.OUTCOME_SUCCESS, request_id=uuid.uuid4().hex)
    answer = rig.call(StopRecording, 'recorder/stop_recording', stop, 20.0)
    assert not answer.success
    assert answer.message
    assert list((rig.folder / 'bags').iterdir()), 'what was written before is kept'
    assert rig.state == 'run'
    assert recorder.popen.poll() is None
