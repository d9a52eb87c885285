"""FAST: the error the rounding implies, and no stream but a valid one is decoded."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dct
from tokenizers import ByteLevelBPETokenizer
from tokenizers.trainers import BpeTrainer

from ki_vla.errors import VlaError
from ki_vla.tokens.fast import FastCodec, dct_matrix, error_bound, fit, load_public, quantise

SHAPES = st.tuples(st.integers(1, 24), st.integers(1, 8))


@pytest.fixture(scope='module')
def codec(chunks):
    return fit(chunks, size=300)


@pytest.fixture(scope='module')
def public(chunks, tmp_path_factory):
    """A folder as the released processor's own fit and save would leave it."""
    folder = tmp_path_factory.mktemp('fast')
    codes = [quantise(chunk, 10.0, chunk.shape) for chunk in chunks]
    low, high = min(c.min() for c in codes), max(c.max() for c in codes)
    bpe = ByteLevelBPETokenizer()
    trainer = BpeTrainer(
        vocab_size=512, min_frequency=2, show_progress=False, special_tokens=[], max_token_length=10000,
        initial_alphabet=[chr(i) for i in range(high - low + 1)],
    )  # fmt: skip
    bpe._tokenizer.train_from_iterator((''.join(chr(v - low) for v in c.flatten()) for c in codes), trainer=trainer)
    bpe._tokenizer.save(str(folder / 'tokenizer.json'))
    config = {
        'action_dim': None, 'auto_map': {}, 'min_token': int(low), 'processor_class': 'UniversalActionProcessor',
        'scale': 10.0, 'time_horizon': None, 'vocab_size': 512,
    }  # fmt: skip
    (folder / 'processor_config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize('steps', [1, 2, 7, 50])
def test_dct_is_the_orthonormal_type_two(steps):
    x = np.random.default_rng(0).normal(size=(steps, 3))
    np.testing.assert_allclose(dct_matrix(steps) @ x, dct(x, axis=0, norm='ortho'), atol=1e-12)
    np.testing.assert_allclose(dct_matrix(steps).T @ dct_matrix(steps), np.eye(steps), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, scale=st.sampled_from([1.0, 5.0, 10.0, 20.0]), seed=st.integers(0, 2**31))
def test_round_trip_stays_within_the_bound_that_rounding_implies(shape, scale, seed):
    chunks = np.random.default_rng(seed).uniform(-1.0, 1.0, (3, *shape))
    codec = fit(chunks, size=1024, scale=scale)
    for chunk in chunks:
        error = codec.decode(codec.encode(chunk)) - chunk
        assert np.abs(error).max() <= error_bound(shape[0], scale)
        assert np.sqrt((error**2).mean(axis=0)).max() <= 1.0 / (2.0 * scale) + 1e-9


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 10))
def test_truncated_and_overlong_streams_are_refused(codec, seed, cut):
    chunk = np.clip(np.cumsum(np.random.default_rng(seed).normal(0, 0.05, (20, 6)), axis=0), -1, 1)
    tokens = codec.encode(chunk)
    with pytest.raises(VlaError, match='coefficients'):
        codec.decode(tokens[:-cut])
    with pytest.raises(VlaError, match='coefficients'):
        codec.decode(tokens + tokens[:cut])


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(-5, 400), max_size=30))
def test_garbage_is_refused_or_has_exactly_the_length_of_a_chunk(codec, tokens):
    try:
        chunk = codec.decode(tokens)
    except VlaError:
        return
    assert sum(len(codec.tokenizer.id_to_token(t)) for t in tokens) == codec.values
    assert np.isfinite(chunk).all()


def test_empty_stream_is_refused(codec):
    with pytest.raises(VlaError, match='holds 0 coefficients'):
        codec.decode([])


def test_a_chunk_beyond_the_fitted_range_is_refused_unless_clipping_is_asked_for(codec):
    far = np.full((20, 6), 50.0)
    with pytest.raises(VlaError, match='beyond the fitted'):
        codec.encode(far)
    assert codec.beyond(far) == 6
    assert codec.decode(codec.encode(far, clip=True)).shape == (20, 6)


@pytest.mark.parametrize('bad', [np.zeros((19, 6)), np.zeros(20), np.full((20, 6), np.nan)])
def test_wrong_shape_and_nan_are_refused(codec, bad):
    with pytest.raises(VlaError):
        codec.encode(bad)


def test_pairs_are_merged_and_the_report_holds_what_was_measured(codec, chunks):
    report = codec.round_trip(chunks)
    assert report.chunks == 60
    assert report.max_error <= report.bound
    assert report.values_per_token > 1.5
    assert report.tokens_max >= report.tokens_mean


def test_codec_survives_json(codec, chunks):
    again = FastCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert again.encode(chunks[0]) == codec.encode(chunks[0])
    assert (again.scale, again.min_token, again.max_token) == (codec.scale, codec.min_token, codec.max_token)


@pytest.mark.parametrize('name', ['scale', 'min_token', 'horizon', 'tokenizer'])
def test_a_missing_field_is_named(codec, name):
    data = codec.to_dict()
    del data[name]
    with pytest.raises(VlaError, match=name):
        FastCodec.from_dict(data)


@pytest.mark.parametrize(
    'change',
    [
        {'type': 'Unigram'},
        {'continuing_subword_prefix': 'x'},  # the library aborts the whole process on this one
        {'end_of_word_suffix': 'x'},
        {'vocab': []},
        {'vocab': {'a': -1}},
        {'merges': [['q', 'zz']]},
        {'merges': 3},
    ],
)
def test_a_damaged_tokenizer_is_refused_and_does_not_take_the_process_down(codec, change):
    data = codec.to_dict()
    data['tokenizer']['model'] |= change
    with pytest.raises(VlaError, match='FAST codec'):
        FastCodec.from_dict(data)


def test_fit_refuses_an_alphabet_larger_than_the_vocabulary(chunks):
    with pytest.raises(VlaError, match='symbols'):
        fit(chunks, size=30)


def test_public_layout_is_read_and_round_trips(public, chunks):
    codec = load_public(public, horizon=20, columns=6)
    report = codec.round_trip(chunks)
    assert report.max_error <= report.bound
    with pytest.raises(VlaError, match='coefficients'):
        codec.decode(codec.encode(chunks[0])[:-1])


def test_public_layout_without_a_shape_asks_for_it(public):
    with pytest.raises(VlaError, match='time_horizon'):
        load_public(public)


def test_our_codec_is_written_in_the_public_layout(codec, chunks, tmp_path):
    codec.save_public(tmp_path)
    again = load_public(tmp_path)
    np.testing.assert_array_equal(again.decode(codec.encode(chunks[1])), codec.decode(codec.encode(chunks[1])))
