"""Naive binning, dense and strided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_vla.errors import VlaError
from ki_vla.tokens.naive import NaiveCodec


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 20), columns=st.integers(1, 6), bins=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_dense_error_is_at_most_half_a_bin(steps, columns, bins, seed):
    codec = NaiveCodec(steps, columns, bins)
    chunk = np.random.default_rng(seed).uniform(-1, 1, (steps, columns))
    tokens = codec.encode(chunk)
    assert len(tokens) == steps * columns
    assert np.abs(codec.decode(tokens) - chunk).max() <= 1.0 / bins + 1e-12


def test_stride_five_writes_every_fifth_step_and_draws_lines_between():
    codec = NaiveCodec(20, 2, stride=5)
    chunk = np.linspace([-0.8, 0.3], [0.8, 0.3], 20)
    tokens = codec.encode(chunk)
    assert len(tokens) == 4 * 2
    decoded = codec.decode(tokens)
    np.testing.assert_allclose(decoded[:16], chunk[:16], atol=1.0 / 256 + 1e-9)
    np.testing.assert_array_equal(decoded[16:], np.repeat(decoded[15:16], 4, axis=0))


def test_values_beyond_the_range_are_clipped_or_refused():
    codec = NaiveCodec(1, 2, bins=10)
    assert codec.encode(np.array([[-3.0, 3.0]])) == [0, 9]
    assert codec.beyond(np.array([[-3.0, 0.5]])) == 1
    with pytest.raises(VlaError, match='beyond'):
        codec.encode(np.array([[-3.0, 3.0]]), clip=False)


@pytest.mark.parametrize('tokens', [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, 256], [-1, 2, 3, 4]])
def test_streams_of_wrong_length_or_range_are_refused(tokens):
    with pytest.raises(VlaError):
        NaiveCodec(2, 2).decode(tokens)


def test_impossible_shapes_are_refused():
    with pytest.raises(VlaError, match='at least 1'):
        NaiveCodec(0, 3)
