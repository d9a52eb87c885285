"""The doctor finds what is wrong with columns, streams and episodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract
from training.doctor.diagnose import diagnose
from training.doctor.findings import Finding, worst
from training.index.episodes import IndexOptions
from training.index.index import Index, index_bags

MakeBag = Callable[..., Path]
START_NS = 1_700_000_000_000_000_000


def kinds(findings: list[Finding], field: str | None = None) -> set[str]:
    return {finding.kind for finding in findings if field is None or finding.field == field}


@pytest.fixture
def sick(toy: Contract, tmp_path: Path, scribe: Any) -> Index:
    """Joint 1 in degrees, joint 2 stuck, the gripper hardly used, a black camera, a pause, one instruction."""
    with BagWriter(tmp_path / 'bags' / 'sick', custom={'task': 'lift'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed', '/joint_states', '/gripper_controller/commands'))
        writer.stretch(8.0)
        writer.without = ()
        rng = np.random.default_rng(0)
        for index in range(801):
            if 300 < index < 320:
                continue
            degrees = 40.0 * np.sin(index / 100) + rng.normal() * 0.01
            writer.joints(START_NS + index * 10**7, (degrees, 0.5, 0.03), log_ns=START_NS + index * 10**7)
        for index in range(161):
            writer.gripper(START_NS + index * 50_000_000, 0.03 + 0.001 * (index % 2))
        black = cv2.imencode('.jpg', np.zeros((24, 32, 3), np.uint8))[1].reshape(-1)
        for index in range(241):
            writer.image('scene', START_NS + round(index / 30 * 1e9), black)
    return index_bags(tmp_path / 'bags', toy, tmp_path / 'index')


def test_the_doctor_names_what_is_wrong(sick: Index) -> None:
    findings = diagnose(sick)
    assert kinds(findings, 'joint1/position') >= {'degrees'}
    assert 'constant' in kinds(findings, 'joint2/position')
    assert 'gripper_range' in kinds(findings, 'gripper/position')
    assert {'black', 'frozen'} <= kinds(findings, 'scene')
    assert 'dropped' in kinds(findings, 'joint_states')
    assert 'one_instruction' in kinds(findings)
    assert findings[0].level == worst(findings) == 'error'


def test_sound_data_gets_no_error(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    for name, task in (('a', 'lift the cup'), ('b', 'open the drawer')):
        make_bag(name, seconds=8.0, task=task)
    findings = diagnose(index_bags(tmp_path / 'bags', toy, tmp_path / 'index'))
    assert worst(findings) in ('', 'note', 'warning')
    # The base is told one speed throughout, and that alone is odd about this data.
    assert {finding.field for finding in findings if finding.level == 'warning'} == {'base/linear/x/velocity'}


def test_lost_frames_are_counted(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/scene/image_raw/compressed',))
        writer.stretch(6.0)
        writer.without = ()
        for index in range(180):
            if index % 8:
                picture = cv2.imencode('.jpg', np.full((24, 32, 3), index, np.uint8))[1].reshape(-1)
                writer.image('scene', START_NS + round(index / 30 * 1e9), picture)
    findings = diagnose(index_bags(tmp_path / 'bag', toy, tmp_path / 'index'))
    [lost] = [finding for finding in findings if finding.kind == 'lost_frames']
    assert lost.field == 'scene'
    assert lost.text.startswith('12 % of the frames of scene are missing')


def test_an_outlier_and_a_limit_are_named_by_column(toy: Contract, tmp_path: Path, scribe: Any) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as bag:
        writer = scribe(bag)
        writer.stretch(8.0)
        writer.gripper(START_NS + 4_050_000_000, 0.5)
    index = index_bags(tmp_path / 'bag', toy, tmp_path / 'index', IndexOptions())
    findings = diagnose(index)
    assert {'outlier', 'limit'} <= kinds(findings, 'gripper/position')


def test_no_data_is_a_finding(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    index = index_bags(make_bag(without=('/joint_states',)), toy, tmp_path / 'index')
    assert diagnose(index)[0].kind == 'no_data'
