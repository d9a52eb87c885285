"""Action ids in the vocabulary: the mapping from its end, and decoding under constraint."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_vla.errors import VlaError
from ki_vla.tokens.actions import ActionTokens, load_codec, save_codec
from ki_vla.tokens.fast import FastCodec, fit
from ki_vla.tokens.naive import NaiveCodec
from ki_vla.tokens.vocabulary import gemma_vocabulary


@pytest.fixture(scope='module', params=['fast', 'naive', 'strided', 'gemma'])
def tokens(request, chunks, small):
    if request.param == 'fast':
        return ActionTokens(fit(chunks, size=300), small.vocabulary)
    if request.param == 'gemma':
        return ActionTokens(fit(chunks, size=300), gemma_vocabulary())
    return ActionTokens(NaiveCodec(20, 6, stride=5 if request.param == 'strided' else 1), small.vocabulary)


def test_gemma_ids_count_down_from_257023():
    vocabulary = gemma_vocabulary()
    assert vocabulary.action_ids(np.array([0, 1, 1023, 2047])).tolist() == [257023, 257022, 256000, 254976]
    assert vocabulary.action_tokens(np.array([257023, 254976])).tolist() == [0, 2047]
    for outside in (257024, 254975, 5):
        with pytest.raises(VlaError, match='no action token'):
            vocabulary.action_tokens(np.array([outside]))


def test_encoded_chunk_passes_its_own_constraint_and_comes_back(tokens, chunks):
    chunk = np.clip(chunks[0], -0.99, 0.99)
    stream = tokens.stream()
    ids = tokens.encode(chunk)
    assert ids[-1] == tokens.vocabulary.bar
    for token in ids:
        assert token in stream.allowed()
        stream.push(token)
    assert stream.complete
    assert stream.allowed().size == 0
    np.testing.assert_array_equal(stream.chunk(), tokens.codec.decode(tokens.codec.encode(chunk)))
    np.testing.assert_array_equal(tokens.decode([*ids, tokens.vocabulary.eos]), stream.chunk())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_any_walk_through_the_allowed_ids_ends_in_a_chunk(tokens, seed):
    rng = np.random.default_rng(seed)
    stream = tokens.stream()
    for _ in range(200):
        if stream.complete:
            break
        stream.push(int(rng.choice(stream.allowed())))
    assert stream.chunk().shape == (20, 6)
    assert np.isfinite(stream.chunk()).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_any_walk_with_room_for_so_many_ids_ends_within_them(tokens, seed):
    rng, stream = np.random.default_rng(seed), tokens.stream()
    longest = max(1, tokens._longest)
    room = tokens.codec.values // longest + tokens.codec.values % longest + int(rng.integers(1, 20))
    said = 0
    while not stream.complete:
        allowed = stream.allowed(room - said)
        stream.push(int(rng.choice(allowed)))
        said += not stream.complete
    assert said <= room
    assert stream.chunk().shape == (tokens.codec.horizon, tokens.codec.columns)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stream_with_one_id_dropped_added_or_replaced_is_refused_or_complete(tokens, chunks, data):
    ids = tokens.encode(chunks[1], clip=True)
    at = data.draw(st.integers(0, len(ids) - 1))
    kind = data.draw(st.sampled_from(['drop', 'add', 'text', 'cut']))
    broken = {
        'drop': ids[:at] + ids[at + 1 :],
        'add': [*ids[:at], ids[0], *ids[at:]],
        'text': [*ids[:at], 7, *ids[at + 1 :]],
        'cut': ids[:at],
    }[kind]
    with pytest.raises(VlaError):
        tokens.decode(broken)


def test_nothing_may_follow_the_bar(tokens, chunks):
    ids = tokens.encode(chunks[0], clip=True)
    with pytest.raises(VlaError, match='after the closing'):
        tokens.decode([*ids, ids[0]])


def test_streams_of_the_public_byte_alphabet_are_followed_across_split_characters(small):
    """A codec in which a token may end in the middle of a two-byte character."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    codec = FastCodec(tokenizer, 10.0, -200, -200 + 0x7FF, 4, 2)
    tokens = ActionTokens(codec, small.vocabulary)
    chunk = np.random.default_rng(0).uniform(-1, 1, (4, 2))
    ids = tokens.encode(chunk)
    assert len(ids) > codec.values + 1
    np.testing.assert_allclose(tokens.decode(ids), chunk, atol=0.11)
    lead = next(token for token, piece in enumerate(codec.pieces()) if piece[0] >= 0xC2)
    with pytest.raises(VlaError):
        codec.decode([*codec.encode(chunk)[:-1], lead])
    with pytest.raises(VlaError, match='cannot follow'):
        tokens.decode([*tokens.vocabulary.action_ids(np.array([lead, lead])), tokens.vocabulary.bar])
    rng = np.random.default_rng(1)
    for _ in range(30):
        stream = tokens.stream()
        while not stream.complete:
            stream.push(int(rng.choice(stream.allowed())))
        assert stream.chunk().shape == (4, 2)


def test_codec_is_saved_and_loaded(tokens, chunks, tmp_path):
    save_codec(tokens.codec, tmp_path / 'fast.json')
    again = load_codec(tmp_path / 'fast.json')
    assert type(again) is type(tokens.codec)
    assert again.encode(chunks[0], clip=True) == tokens.codec.encode(chunks[0], clip=True)


@pytest.mark.parametrize('text', ['', '[]', '{"kind": "other"}', '{"kind": "naive", "bins": 3}'])
def test_a_damaged_codec_file_is_refused(text, tmp_path):
    (tmp_path / 'fast.json').write_text(text)
    with pytest.raises(VlaError):
        load_codec(tmp_path / 'fast.json')


def test_a_codec_larger_than_the_room_for_it_is_refused(small):
    with pytest.raises(VlaError, match='action tokens'):
        ActionTokens(NaiveCodec(20, 6, bins=400), small.vocabulary)
