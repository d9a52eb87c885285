"""`ki doctor` on this machine, and on machines that lack something."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ki.commands import doctor

Ki = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.ros
def test_this_machine_has_what_the_other_tests_use(ki_process: Ki) -> None:
    done = ki_process('doctor', '--json')
    findings = {entry['what']: entry for entry in json.loads(done.stdout)}
    for name in ('Python', 'torch', 'ONNX Runtime', 'ROS 2', 'ki_msgs', 'DDS profile', 'round trip'):
        assert findings[name]['state'] == 'ok', findings[name]
    assert 'images answered' in findings['round trip']['found']
    assert (done.returncode == 0) == all(entry['state'] != 'broken' for entry in findings.values())


def test_images_that_are_lost_once_are_sent_again_and_those_that_are_always_lost_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from ki.stack import roundtrip

    answers = iter([25, 29])
    monkeypatch.setattr(roundtrip, 'measure', lambda: roundtrip.DdsRoundTrip(30, next(answers), 0.04, 1.0))
    assert [found.state for found in doctor.round_trip()] == ['ok']
    answers = iter([25, 12, 20])
    [found] = doctor.round_trip()
    assert (found.state, found.found[:11]) == ('broken', '20 of 30 im')


def test_a_segment_too_small_for_images_is_noted_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    small = tmp_path / 'small.xml'
    small.write_text((root / 'config/dds/loopback.xml').read_text().replace('33554432', '524288'))
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(small))
    [finding] = doctor.dds()
    assert finding.state == 'note'
    assert '0.5 MiB' in finding.found
    assert finding.fix.endswith('config/dds/loopback.xml')
    small.write_text('<profiles>')
    [finding] = doctor.dds()
    assert finding.state == 'broken'


def test_two_builds_of_onnx_runtime_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, 'version_of', lambda name: '1.0')
    [finding] = doctor.onnxruntime()
    assert (finding.state, finding.found) == ('broken', 'two builds share one module: onnxruntime and onnxruntime-gpu')
    assert 'pip uninstall' in finding.fix


def test_a_check_that_fails_is_a_finding_and_the_others_go_on() -> None:
    def breaks() -> doctor.Iterator[doctor.CheckResult]:
        yield doctor.CheckResult('first', 'ok', 'fine')
        raise OSError('no such thing')

    states = [(finding.state, finding.found) for finding in doctor.examine(breaks)]
    assert states == [('ok', 'fine'), ('broken', 'OSError: no such thing')]


def test_recordings_that_are_no_folder_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('KI_DATA', '/no/such/folder')
    [finding] = doctor.data()
    assert finding.state == 'broken'
