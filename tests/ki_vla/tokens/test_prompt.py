"""Prompts, states, boxes and the two tokenizers."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.transforms import resize_with_pad
from ki_vla.errors import VlaError
from ki_vla.tokens.loc import box_text, from_pixels, read_boxes, to_pixels
from ki_vla.tokens.prompt import action_prompt, plain_prompt
from ki_vla.tokens.state import bin_centres, discretise, state_text
from ki_vla.tokens.tokenizer import load_gemma, load_tokenizer, train_tokenizer
from ki_vla.tokens.vocabulary import Vocabulary, gemma_vocabulary, small_vocabulary

STATE = np.array([-1.0, 0.0, 0.5])


def test_state_bins_cover_the_range_and_clamp_beyond_it():
    values = np.array([-1.0, -0.9999, 0.0, 0.999, 1.0, -7.0, 7.0])
    assert discretise(values).tolist() == [0, 0, 128, 255, 255, 0, 255]
    assert state_text(np.array([-1.0, 0.0])) == '0 128'


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=20))
def test_state_bins_are_off_by_at_most_half_a_bin(values):
    assert np.abs(bin_centres(discretise(np.array(values))) - values).max() <= 1.0 / 256 + 1e-9


def test_state_bins_equal_openpis_within_the_range():
    values = np.random.default_rng(0).uniform(-1, 1, 500)
    np.testing.assert_array_equal(discretise(values), np.digitize(values, bins=np.linspace(-1, 1, 257)[:-1]) - 1)


def test_a_state_below_the_range_is_bin_minus_one_where_the_policy_was_trained_so():
    values = np.array([-1.2, -1.0, 0.0, 1.2])
    np.testing.assert_array_equal(discretise(values, -1), np.digitize(values, bins=np.linspace(-1, 1, 257)[:-1]) - 1)
    assert state_text(values, -1) == '-1 0 128 255'


def test_state_with_nan_is_refused():
    with pytest.raises(VlaError, match='finite'):
        discretise(np.array([0.0, np.nan]))


def test_text_prompt_reads_as_documented(small):
    ids = action_prompt(small, ' pick_up the red\ncube ', STATE, limit=200)
    assert ids[0] == small.vocabulary.bos
    assert small.decode(ids[1:]) == 'Task: pick up the red cube, State: 0 128 192;\nAction: '


def test_special_state_is_one_token_for_each_value(small):
    ids = action_prompt(small, 'stop', STATE, 'special', limit=200)
    start = small.vocabulary.state_start
    assert [i - start for i in ids if start <= i < start + 256] == [0, 128, 192]


def test_continuous_state_leaves_no_trace_in_the_text(small):
    ids = action_prompt(small, 'stop', STATE, 'continuous', limit=200)
    assert ids == action_prompt(small, 'stop', STATE + 0.3, 'continuous', limit=200)
    assert small.decode(ids) == 'Task: stop;\nAction: '


def test_plain_prompt_ends_with_a_newline_token(small):
    ids = plain_prompt(small, 'where is the cube?', limit=200)
    assert small.decode(ids) == 'where is the cube?\n'
    assert ids[-1:] == small.encode('\n')


def test_too_long_a_prompt_is_refused_or_loses_words_of_the_instruction_only(small):
    text = 'pick up the red cube and then ' * 20
    with pytest.raises(VlaError, match='the model takes 60'):
        action_prompt(small, text, STATE, limit=60)
    ids = action_prompt(small, text, STATE, limit=60, truncate=True)
    assert len(ids) <= 60
    assert small.decode(ids).startswith('Task: pick up the red')
    assert small.decode(ids).endswith(', State: 0 128 192;\nAction: ')
    with pytest.raises(VlaError, match='the model takes 5'):
        action_prompt(small, text, STATE, limit=5, truncate=True)


@pytest.mark.parametrize('text', ['', '  \n', '_'])
def test_an_empty_instruction_is_refused(small, text):
    with pytest.raises(VlaError, match='empty'):
        action_prompt(small, text, STATE, limit=100)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives_the_small_tokenizer(small, text):
    import unicodedata

    text = text.encode('utf-8', 'ignore').decode('utf-8')
    ids = small.encode(text)
    assert small.decode(ids) == unicodedata.normalize('NFC', text)


def test_control_tokens_in_a_text_are_plain_characters(small):
    ids = small.encode('stop <eos><bos><pad> now')
    assert not {0, 1, 2} & set(ids)
    assert small.decode(ids) == 'stop <eos><bos><pad> now'


def test_a_tokenizer_survives_the_way_to_a_data_loader_worker(small):
    again = pickle.loads(pickle.dumps(small))
    text = 'stop <eos> <loc0003>'
    assert again.encode(text) == small.encode(text)
    assert 1 not in again.encode(text)


def test_loc_tokens_are_one_id_each_and_boxes_come_back(small):
    box = np.array([0.1, 0.2, 0.55, 0.999])
    ids = small.encode(box_text(box, 64) + ' cube')
    low = small.vocabulary.loc_start
    assert all(low <= i < low + 64 for i in ids[:4])
    assert np.abs(read_boxes(small.decode(ids), 64)[0] - box).max() <= 0.5 / 64


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4), st.sampled_from([16, 64, 1024]))
def test_boxes_are_off_by_at_most_half_a_step(values, bins):
    y0, y1 = sorted(values[:2])
    x0, x1 = sorted(values[2:])
    box = np.array([y0, x0, y1, x1])
    assert np.abs(read_boxes(f'a {box_text(box, bins)} b', bins)[0] - box).max() <= 0.5 / bins + 1e-12


@pytest.mark.parametrize('box', [[0, 0, 1], [0, 0, 1, 1.2], [0.5, 0, 0.1, 1], [0, 0, np.nan, 1]])
def test_impossible_boxes_are_refused(box):
    with pytest.raises(VlaError, match='box'):
        box_text(np.array(box))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4),
    height=st.integers(1, 900),
    width=st.integers(1, 900),
    size=st.sampled_from([32, 96, 224]),
)
def test_boxes_in_pixels_follow_the_picture_into_the_padded_square(values, height, width, size):
    y0, y1 = sorted(values[:2])
    x0, x1 = sorted(values[2:])
    pixels = np.array([y0 * height, x0 * width, y1 * height, x1 * width])
    box = from_pixels(pixels, height, width, size)
    assert box.min() >= 0.0
    assert box.max() <= 1.0
    box_text(box)
    np.testing.assert_allclose(to_pixels(box, height, width, size), pixels, atol=1e-6 * max(height, width))


def test_a_box_lies_where_its_pixels_are_after_resizing():
    image = np.zeros((120, 200, 3), np.uint8)
    image[30:60, 50:150] = 255
    square = resize_with_pad(image, 64)[..., 0] > 127
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    seen = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]) / 64
    assert np.abs(from_pixels(np.array([30, 50, 60, 150]), 120, 200, 64) - seen).max() <= 1 / 64


def test_a_box_beyond_the_vocabulary_is_refused():
    with pytest.raises(VlaError, match='beyond'):
        read_boxes('<loc0001><loc0002><loc0003><loc0064>', 64)


def test_tokenizer_is_saved_and_loaded(small, tmp_path):
    small.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocabulary == small.vocabulary
    text = 'pick <loc0003> <eos> é'
    assert again.encode(text) == small.encode(text)


def test_a_missing_or_swapped_tokenizer_file_is_refused(small, tmp_path):
    with pytest.raises(VlaError, match=r'vocabulary\.json'):
        load_tokenizer(tmp_path)
    small.save(tmp_path)
    (tmp_path / 'tokenizer.json').write_text('{}')
    with pytest.raises(VlaError, match=r'tokenizer\.json'):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_gemmas_is_refused(small, tmp_path):
    small.save(tmp_path)
    with pytest.raises(VlaError, match='not the Gemma'):
        load_gemma(tmp_path)


def test_small_layout_keeps_every_kind_apart(small):
    v = small.vocabulary
    low, high = v.action_range
    assert v.text_size <= v.loc_start <= v.loc_start + v.loc_bins <= v.state_start
    assert v.state_start + v.state_bins <= low <= high == v.size - 1


def test_gemma_layout_keeps_state_clear_of_actions_and_boxes():
    v = gemma_vocabulary()
    assert v.state_start + v.state_bins == v.action_range[0]
    assert v.action_range[1] == v.loc_start + v.loc_bins - 1 == 257023


def test_layouts_that_do_not_fit_are_refused():
    with pytest.raises(VlaError, match='too small'):
        small_vocabulary(500, 300, 95, loc_bins=64, action_size=100)
    with pytest.raises(VlaError, match=r"vocabulary\.json has no field 'text_size'; add it as a whole number"):
        Vocabulary.parse({'size': 3}, 'vocabulary.json')
    with pytest.raises(VlaError, match='trained on'):
        train_tokenizer([], size=1024)


@pytest.mark.slow
def test_the_real_gemma_vocabulary(tmp_path):
    """Set KI_GEMMA_TOKENIZER to a Gemma or PaliGemma tokenizer.json, or its folder."""
    path = os.environ.get('KI_GEMMA_TOKENIZER')
    if not path:
        pytest.skip('KI_GEMMA_TOKENIZER is not set: the real Gemma vocabulary was NOT checked')
    assert Path(path).exists(), f'KI_GEMMA_TOKENIZER={path} does not exist'
    gemma = load_gemma(path)
    assert gemma.encode('|') == [235371]
    assert gemma.encode('\n') == [108]
    assert gemma.encode('<loc0000><loc1023><seg127>') == [256000, 257023, 257151]
    assert gemma.encode('<eos>') != [1]
    gemma.save(tmp_path)  # as it lies in a bundle, and as PaliGemma's own file: every token is there already
    for again in (load_tokenizer(tmp_path), load_gemma(tmp_path)):
        assert again.vocabulary == gemma.vocabulary
        assert again.encode('put <loc0007> <eos> | now') == gemma.encode('put <loc0007> <eos> | now')
    ids = action_prompt(gemma, 'pick up', np.array([-1.0, 0.0]), limit=200)
    assert ids == [2, 7071, 235292, 4788, 908, 235269, 3040, 235292, 235248, 235276, 235248, 235274, 235284, 235321,
                   235289, 108, 4022, 235292, 235248]  # fmt: skip
    assert gemma.decode(ids) == 'Task: pick up, State: 0 128;\nAction: '
    assert read_boxes(gemma.decode(gemma.encode('<loc0001><loc0002><loc0003><loc0004> cup'))).shape == (1, 4)
    special = action_prompt(gemma, 'pick up', np.array([-1.0, 1.0]), 'special', limit=200)
    assert [i for i in special if 254720 <= i < 254976] == [254720, 254975]
