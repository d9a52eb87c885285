"""Knowledge data: true answers, right boxes, splits that share nothing."""

from __future__ import annotations

import json
import re

import cv2
import numpy as np
import pytest

from ki_sim.errors import SimError
from ki_sim.knowledge import KNOWLEDGE_HELD_OUT, Photographer, knowledge_pairs, sample_still, scene_lines, write
from ki_sim.questions import Fact, boxes, counts, existence, hands, lines_about, listed, locations, places, sides
from ki_sim.things import COLOURS, HELD_OUT, KINDS, pairs

CUP = Fact('red', 'cup', 'table', '', 0.45, 0.10, (0.5, 0.25, 0.75, 0.5))
BALL = Fact('blue', 'ball', 'left hand', '', 0.45, -0.10, (0.1, 0.1, 0.2, 0.2))
BOOK = Fact('red', 'book', 'table', '', 0.40, 0.12, (0.6, 0.2, 0.8, 0.5))
APPLE = Fact('green', 'apple', 'on', 'red book', 0.40, 0.12, (0.6, 0.3, 0.7, 0.4))


@pytest.fixture(scope='module')
def photographer() -> Photographer:
    return Photographer(48)


def answers(lines) -> dict[str, str]:
    return {line['prompt']: line['answer'] for line in lines}


def test_left_is_the_robots_left():
    said = [answers(sides([CUP, BALL], np.random.default_rng(i))) for i in range(8)]
    assert {'is the red cup left or right of the blue ball?': 'left'} in said
    assert {'is the blue ball left or right of the red cup?': 'right'} in said


def test_counting_counts():
    found = answers(counts([CUP, BALL, BOOK], np.random.default_rng(1)))
    assert found['how many objects are there?'] == 'three'
    for seed in range(20):
        for prompt, answer in answers(counts([CUP, BALL, BOOK], np.random.default_rng(seed))).items():
            if prompt == 'how many red objects are there?':
                assert answer == 'two'
            if prompt == 'how many bowls are there?':
                assert answer == 'none'


def test_things_that_are_not_there_are_denied():
    for seed in range(20):
        for prompt, answer in answers(existence([CUP, BALL], np.random.default_rng(seed))).items():
            assert answer == ('yes' if ('red cup' in prompt or 'blue ball' in prompt) else 'no')


def test_places_and_hands_are_told():
    found = answers(places([CUP, BALL, BOOK, APPLE], np.random.default_rng(0)))
    assert found['where is the blue ball?'] == 'in the left hand'
    assert found['where is the green apple?'] == 'on the red book'
    assert found['what is on the red book?'] == 'green apple'
    found = answers(hands([CUP, BALL], np.random.default_rng(0)))
    assert found['which hand holds the blue ball?'] == 'left'
    assert found['what does the left hand hold?'] == 'blue ball'


def test_boxes_are_paligemmas_location_tokens():
    assert locations(CUP) == '<loc0512><loc0256><loc0768><loc0512>'
    found = answers(boxes([CUP, BOOK, BALL], np.random.default_rng(0)))
    assert found['detect red cup'] == f'{locations(CUP)} red cup'
    assert found['detect red'] == f'{locations(CUP)} red ; {locations(BOOK)} red'
    assert found['detect blue'] == f'{locations(BALL)} blue'
    assert 'detect cup' not in found, 'one of a kind is asked for by colour or name'
    everything = f'{locations(BALL)} blue ball ; {locations(CUP)} red cup ; {locations(BOOK)} red book'
    lines = lines_about([CUP, BOOK, BALL], np.random.default_rng(0))
    assert answers(lines)['detect everything'] == everything, 'from top to bottom'
    assert listed(['a', 'b', 'c']) == 'a, b and c'


def test_every_line_about_a_scene_has_words():
    lines = lines_about([CUP, BALL, BOOK, APPLE], np.random.default_rng(3))
    assert {'caption', 'colour', 'count', 'exists', 'side', 'place', 'bin', 'hand', 'box', 'objects'} == {
        x['kind'] for x in lines
    }
    assert all(line['prompt'] and line['answer'] for line in lines)


def test_splits_share_no_pair_and_the_held_out_ones_are_always_shown():
    assert not set(knowledge_pairs('train')) & set(knowledge_pairs('heldout'))
    for seed in range(300):
        shown = {(t.colour, t.kind) for t in sample_still(seed, 'train').scene.things}
        assert not shown & KNOWLEDGE_HELD_OUT
        held = {(t.colour, t.kind) for t in sample_still(seed, 'heldout').scene.things}
        assert held & KNOWLEDGE_HELD_OUT
        assert len(held) == len(sample_still(seed, 'heldout').scene.things)


def test_knowledge_tells_of_what_actions_leave_out_and_never_the_other_way():
    assert set(knowledge_pairs('train')) >= HELD_OUT
    assert not set(pairs('train')) & KNOWLEDGE_HELD_OUT
    assert all(colour not in COLOURS or kind not in KINDS for colour, kind in KNOWLEDGE_HELD_OUT)
    assert len({kind for _, kind in knowledge_pairs('train')}) > len(KINDS)


def test_boxes_enclose_the_colour_of_the_thing(photographer):
    seen = 0
    for seed in range(120):
        still = sample_still(seed, 'train')
        things = still.scene.things
        if len(things) > 2 or things[0].colour not in ('red', 'blue', 'yellow') or still.places[0] != 'table':
            continue
        image, facts = Photographer(192).shoot(still)
        top, left, bottom, right = (round(edge * 192) for edge in facts[0].box)
        patch = image[top:bottom, left:right].reshape(-1, 3).astype(int)
        hot = {'red': patch[:, 0] - patch[:, 1:].max(1), 'blue': patch[:, 2] - patch[:, :2].max(1)}
        strength = hot.get(things[0].colour, patch[:, :2].min(1) - patch[:, 2])
        assert (strength > 60).mean() > 0.15, (seed, things[0].label)
        seen += 1
        if seen == 3:
            break
    assert seen >= 2


def test_a_held_thing_is_in_the_hand(photographer):
    seed = next(s for s in range(100) if 'right hand' in sample_still(s, 'train').places)
    _, facts = photographer.shoot(sample_still(seed, 'train'))
    fact = next(fact for fact in facts if fact.where == 'right hand')
    assert fact.y < 0
    assert fact.place == 'in the right hand'


def test_the_same_seed_gives_the_same_picture_and_lines(photographer):
    one, two = scene_lines(3, 'train', photographer), scene_lines(3, 'train', Photographer(48))
    assert (one[0] == two[0]).all()
    assert one[1] == two[1]


def test_files_are_complete_and_a_second_call_goes_on(tmp_path):
    number = write(tmp_path, 4, 0, 'train', 32, workers=1)
    lines = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
    assert len(lines) == number
    for line in lines:
        assert {'image', 'kind', 'prompt', 'answer', 'seed', 'split'} == set(line)
        assert cv2.imread(str(tmp_path / line['image'])).shape == (32, 32, 3)
        assert re.fullmatch(r'images/train/\d{7}\.jpg', line['image'])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob('images/train/*')}
    assert write(tmp_path, 4, 0, 'train', 32, workers=1) == number
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob('images/train/*')}


def test_wrong_orders_are_refused(tmp_path):
    with pytest.raises(SimError, match="split 'test' is not known"):
        write(tmp_path, 1, split='test')
    with pytest.raises(SimError, match='ask for at least 1'):
        write(tmp_path, 0)
