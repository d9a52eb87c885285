"""Transforms: every one inverts, matches the formulas it names, and refuses data of another robot."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ki_robot.contract.contract import load_contract
from ki_robot.errors import RobotError
from ki_robot.transforms import (
    MIN_SPAN,
    ScalingRules,
    Stats,
    load_stats,
    pad,
    placement,
    quantile_scaling,
    resize_with_pad,
    save_stats,
    scaling_of,
    unpad,
    zscore_scaling,
)

NUMBERS = st.floats(-10, 10, width=32)


def stats_of(values: np.ndarray, names: tuple[str, ...] = ()) -> Stats:
    names = names or tuple(f'joint{i}/position' for i in range(values.shape[1]))
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return Stats(names, values.mean(0), values.std(0), q01, q99, len(values), {'bags': ['a.mcap'], 'unit': 'rad'})


@pytest.mark.parametrize('scaling', [quantile_scaling, zscore_scaling])
@settings(max_examples=60, deadline=None)
@given(data=hnp.arrays(np.float64, (20, 3), elements=NUMBERS), values=hnp.arrays(np.float64, (5, 3), elements=NUMBERS))
def test_normalisation_inverts(scaling: Any, data: np.ndarray, values: np.ndarray) -> None:
    scale = scaling(stats_of(data))
    np.testing.assert_allclose(scale.invert(scale.apply(values)), values, rtol=1e-12, atol=1e-12)


def test_quantiles_follow_openpi() -> None:
    data = np.random.default_rng(0).normal(size=(500, 4)) * [1, 0.1, 3, 0.02]
    stats = stats_of(data)
    openpi = (data - stats.q01) / (stats.q99 - stats.q01 + 1e-6) * 2.0 - 1.0
    np.testing.assert_allclose(quantile_scaling(stats).apply(data), openpi, rtol=0, atol=1e-12)


def test_zscore_has_mean_zero_and_spread_one() -> None:
    data = np.random.default_rng(0).normal(2.0, 0.5, size=(500, 4))
    normal = zscore_scaling(stats_of(data)).apply(data)
    np.testing.assert_allclose(normal.mean(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(normal.std(0), 1.0, atol=1e-5)


@pytest.mark.parametrize('scaling', [quantile_scaling, zscore_scaling])
def test_a_column_that_never_moved_is_floored_and_named(scaling: Any) -> None:
    data = np.random.default_rng(0).normal(size=(200, 2)) * [1.0, 1e-6] + [0.0, 0.7]
    scale = scaling(stats_of(data))
    assert scale.floored == ('joint1/position',)
    normal = scale.apply(np.array([[0.0, 0.7], [0.0, 0.7 + MIN_SPAN]]))
    assert abs(normal[0, 1]) < 0.01, 'the constant itself becomes 0'
    assert 1.0 < normal[1, 1] < 5.0, 'sensor noise stays of order 1'


@pytest.mark.parametrize('rules', ['openpi', 'lerobot'])
def test_a_policy_trained_elsewhere_is_scaled_as_it_was_there_without_a_floor(rules: ScalingRules) -> None:
    """openpi adds 1e-6 to every span; lerobot takes spans as they are, and 1e-8 where one is 0."""
    data = np.random.default_rng(0).normal(size=(200, 3)) * [1.0, 1e-4, 0.0] + [0.0, 0.7, 0.3]
    stats = stats_of(data)
    span = stats.q99 - stats.q01
    divisor = span + 1e-6 if rules == 'openpi' else np.where(span == 0, 1e-8, span)
    found = scaling_of(stats, 'quantile', rules)
    np.testing.assert_allclose(found.apply(data), (data - stats.q01) / divisor * 2.0 - 1.0, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(found.invert(found.apply(data)), data, atol=1e-12)
    divisor = stats.std + (1e-6 if rules == 'openpi' else 1e-8)
    found = scaling_of(stats, 'zscore', rules)
    np.testing.assert_allclose(found.apply(data), (data - stats.mean) / divisor, rtol=1e-7, atol=1e-7)


def test_columns_that_are_not_normalised_stay_as_they_are() -> None:
    data = np.random.default_rng(0).normal(size=(20, 3))
    np.testing.assert_array_equal(scaling_of(stats_of(data), 'identity').apply(data), data)


def test_float32_stays_float32() -> None:
    scale = quantile_scaling(stats_of(np.random.default_rng(0).normal(size=(50, 2))))
    assert scale.apply(np.ones((3, 2), np.float32)).dtype == np.float32
    assert scale.invert(np.ones((3, 2), np.float32)).dtype == np.float32


def test_stats_survive_json_bit_for_bit(tmp_path: Path) -> None:
    stats = stats_of(np.random.default_rng(3).normal(size=(99, 3)))
    save_stats(tmp_path / 'stats.json', {'state': stats, 'actions': stats})
    back = load_stats(tmp_path / 'stats.json')
    assert list(back) == ['state', 'actions']
    assert back['state'].to_dict() == stats.to_dict()
    assert back['state'].provenance == {'bags': ['a.mcap'], 'unit': 'rad'}


def test_stats_of_another_robot_are_refused_by_column() -> None:
    contract = load_contract('arm_single')
    names = contract.state_names
    stats_of(np.random.default_rng(0).normal(size=(9, 8)), names).check(names)
    with pytest.raises(RobotError, match="has 'elbow/position', which is none of the state columns"):
        stats_of(np.ones((9, 1)), ('elbow/position',)).check(names, 'state columns')
    with pytest.raises(RobotError, match="lacks 'gripper/position'"):
        stats_of(np.ones((9, 7)), names[:7]).check(names)
    with pytest.raises(RobotError, match='another order'):
        stats_of(np.ones((9, 8)), names[::-1]).check(names)


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'mean': [0.0]}, r'stats\.mean has shape \(1,\)'),
        ({'mean': [0.0, None]}, r'mean\[1\] has no value; write a number'),
        ({'std': [1.0, 'x']}, r"std\[1\] is 'x'; write a number"),
        ({'std': [1.0, -1.0]}, 'std is negative in column joint1/position'),
        ({'q99': [-9.0, 9.0]}, 'q99 - q01 is negative in column joint0/position'),
        ({'q01': [float('nan'), 0.0]}, r'stats\.q01 is not finite in column joint0/position'),
        ({'count': 0}, 'count is 0'),
        ({'count': 'many'}, "count is 'many'"),
        ({'names': 'joint0'}, "names is 'joint0'"),
        ({'median': []}, "unknown field 'median'"),
    ],
)
def test_broken_stats_are_refused_with_file_and_field(tmp_path: Path, change: Any, said: str) -> None:
    data = {**stats_of(np.random.default_rng(0).normal(size=(9, 2))).to_dict(), **change}
    file = tmp_path / 'stats.json'
    file.write_text(json.dumps({'state': data}))
    with pytest.raises(RobotError, match=said) as caught:
        load_stats(file)
    assert str(caught.value).startswith(f'{file}: state')


TREES = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FIELDS = st.sampled_from(['names', 'mean', 'std', 'q01', 'q99', 'count', 'provenance', None])


@settings(max_examples=80, deadline=None)
@given(TREES, FIELDS)
def test_any_json_gives_stats_or_a_robot_error(tree: object, key: str | None) -> None:
    data = stats_of(np.random.default_rng(0).normal(size=(9, 2))).to_dict()
    with contextlib.suppress(RobotError):
        assert Stats.from_dict(tree if key is None else {**data, key: tree}).count >= 1


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=NUMBERS), st.integers(0, 5))
def test_padding_inverts_and_marks_the_real_columns(values: np.ndarray, more: int) -> None:
    width = values.shape[1]
    padded, mask = pad(values, width + more)
    assert padded.shape == (len(values), width + more)
    assert mask.sum() == width
    assert not padded[:, ~mask].any()
    np.testing.assert_array_equal(unpad(padded, width), values)


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RobotError, match='9 columns do not fit into 8'):
        pad(np.ones((2, 9)), 8)
    with pytest.raises(RobotError, match='gives 8 columns; the robot needs 9'):
        unpad(np.ones((2, 8)), 9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from([32, 56, 224]))
def test_a_resized_image_keeps_its_shape_centred_on_black(height: int, width: int, size: int) -> None:
    square = resize_with_pad(np.full((height, width, 3), 200, np.uint8), size)
    assert square.shape == (size, size, 3)
    top, left, new_height, new_width = placement(height, width, size)
    assert max(new_height, new_width) == size
    assert (square[top : top + new_height, left : left + new_width] == 200).all()
    assert square.sum() == 600 * new_height * new_width


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((480, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = resize_with_pad(stripes, 224)[40:180, 10:210].astype(int)
    assert np.abs(inner - 127).max() <= 2
    linear = cv2.resize(stripes, (224, 168), interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(linear - 127).max() > 60, 'the plain way would alias'


def test_an_image_of_the_right_size_is_passed_on() -> None:
    image = np.zeros((224, 224, 3), np.uint8)
    assert resize_with_pad(image, 224) is image


@pytest.mark.parametrize(
    'image', [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_rgb_image_is_refused(image: Any) -> None:
    with pytest.raises(RobotError, match='uint8'):
        resize_with_pad(image, 224)
