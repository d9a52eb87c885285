"""What a robot shows is held against what the policy was trained on, column by column and stream by stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import StateColumn
from ki_robot.errors import Reason, RobotError
from ki_robot.observation.observation import StreamReport, StreamState
from ki_robot.transforms import Stats
from training.evaluate import train_deploy_drift
from training.fit.stats import compute_stats
from training.index.index import index_bags
from training.samples.dataset import EpisodeDataset

MakeBag = Callable[..., Path]
COLUMN = StateColumn(name='joint1/position', unit='rad', source='joint_states')


def trained_on(values: np.ndarray, name: str = COLUMN.name) -> Stats:
    low, high = np.quantile(values, [0.01, 0.99])
    return Stats((name,), *(np.array([each]) for each in (values.mean(), values.std(), low, high)), len(values))


def difference(values: np.ndarray, here: np.ndarray) -> train_deploy_drift.Difference:
    [found] = train_deploy_drift.differences([COLUMN], trained_on(values), here[:, None])
    return found


def test_shift_and_share_outside_are_what_they_say() -> None:
    trained = np.linspace(-1.0, 1.0, 2001)
    found = difference(trained, np.array([0.0, 0.5, 1.98, 1.98]))
    assert found.shift == pytest.approx(1.115 / trained.std())
    assert found.outside == 0.5
    assert found.beyond == pytest.approx(1.0 / 1.96)  # 1.98 is 1 beyond 0.98, and the range is 1.96 wide
    assert (found.low, found.high) == (0.0, 1.98)


def test_a_robot_that_waits_at_the_edge_of_training_is_no_warning() -> None:
    trained = np.linspace(0.0, 1.0, 1001)
    assert difference(trained, np.full(50, -0.02)).level == ''
    assert difference(trained, np.full(50, -0.2)).level == 'warning'
    far = difference(trained, np.full(50, -1.5))
    assert far.level == 'error'
    assert 'the policy has seen nothing like it' in far.text


def test_degrees_are_named_as_such() -> None:
    found = difference(np.linspace(-1.0, 1.0, 100), np.rad2deg(np.linspace(-1.0, 1.0, 100)))
    assert found.level == 'error'
    assert 'looks like degrees' in found.text


def test_a_column_that_stood_still_in_training_may_tremble() -> None:
    assert difference(np.full(100, 0.3), 0.3 + 1e-3 * np.arange(5)).level == ''
    assert difference(np.full(100, 0.3), np.full(5, 0.5)).level == 'error'


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-2.0, 2.0), st.floats(0.02, 1.0))
def test_the_same_distribution_is_never_suspicious(seed: int, mean: float, std: float) -> None:
    rng = np.random.default_rng(seed)
    found = difference(rng.normal(mean, std, 4000), rng.normal(mean, std, 200))
    assert found.level == ''
    assert 0.0 <= found.outside <= 0.15


def test_other_columns_are_refused() -> None:
    with pytest.raises(RobotError, match='state columns'):
        train_deploy_drift.differences([COLUMN], trained_on(np.arange(9.0), 'joint9/position'), np.zeros((3, 1)))


def test_recordings_are_compared_by_state_and_rate(
    make_bag: MakeBag, toy: Contract, tmp_path: Path, scribe: Callable[..., object]
) -> None:
    from ki_bags.writer import BagWriter

    train = index_bags(make_bag(seconds=6.0), toy, tmp_path / 'train')
    with BagWriter(tmp_path / 'deploy', custom={'task': 'x'}) as bag:
        writer = scribe(bag, without=('/joint_states',))
        writer.stretch(3.0)
        writer.without = ()
        for number in range(91):
            time_ns = 1_700_000_000_000_000_000 + round(number / 30 * 1e9)
            writer.joints(time_ns, (np.sin(number / 30), 3.0, 0.04), log_ns=time_ns)
    deploy = index_bags(tmp_path / 'deploy', toy, tmp_path / 'deploy_index')
    stats = compute_stats(EpisodeDataset(train))['state']
    rows = train_deploy_drift.differences(toy.state, stats, train_deploy_drift.recorded_states(deploy))
    assert {row.column for row in rows if row.level} == {'joint2/position'}
    [finding] = train_deploy_drift.difference_findings(rows)
    assert finding.kind == 'train_deploy'
    [slower] = train_deploy_drift.rate_findings(
        train_deploy_drift.recorded_rates(train), train_deploy_drift.recorded_rates(deploy)
    )
    assert slower.field == 'joint_states'
    assert '30.0 Hz where the policy runs, at 100.0 Hz in training' in slower.text

    same = train_deploy_drift.differences(toy.state, stats, train_deploy_drift.recorded_states(train))
    assert train_deploy_drift.difference_findings(same) == []
    assert (
        train_deploy_drift.rate_findings(
            train_deploy_drift.recorded_rates(train), train_deploy_drift.recorded_rates(train)
        )
        == []
    )


def test_another_robot_is_told_field_by_field(toy: Contract) -> None:
    other = toy.replace(rate_hz=10.0)
    [finding] = train_deploy_drift.mismatch_findings(toy, other)
    assert finding.level == 'error'
    assert 'rate' in finding.text
    assert train_deploy_drift.mismatch_findings(toy, toy) == []


def stream(name: str, received: int, refused: int = 0, state: StreamState = StreamState.OK) -> StreamReport:
    rejected = {Reason.ZERO_STAMP: refused} if refused else {}
    return StreamReport(name, f'{name}/topic', state, 0, 10**8, 20.0, received, rejected, 'its stamp is not set.')


def test_streams_are_judged_as_the_policy_node_would(toy: Contract) -> None:
    health = [
        stream('scene', 40),
        stream('wrist', 0, state=StreamState.NEVER_RECEIVED),
        stream('joint_states', 100, 5),
        stream('odom', 80, 80, StreamState.CLOCK_SKEW),
    ]
    rates = {'scene': 8.0, 'joint_states': 50.0, 'odom': 40.0}
    blind = {'scene': 30, 'odom': 100, 'joint_states': 1}
    found = train_deploy_drift.stream_findings(toy, health, rates, 100, blind)
    assert {(each.field, each.kind, each.level) for each in found} == {
        ('scene', 'slow_camera', 'warning'),
        ('scene', 'hold', 'warning'),
        ('wrist', 'never_received', 'note'),  # not required
        ('joint_states', 'refused', 'warning'),
        ('odom', 'refused', 'error'),
    }
