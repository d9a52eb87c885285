"""VQA data: true answers, right boxes, splits that share nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from ki_robot.transforms import cropped
from ki_sim.errors import SimError
from ki_sim.vqa.boxes import CELLS, SHARP, cells_of
from ki_sim.vqa.questions import (
    Fact,
    boxes,
    counts,
    existence,
    hands,
    lines_about,
    listed,
    locations,
    maps,
    places,
    sides,
)
from ki_sim.vqa.vqa_data import (
    VQA_HELD_OUT,
    Photographer,
    PictureView,
    Still,
    sample_still,
    scene_lines,
    vqa_pairs,
    write,
)
from ki_sim.world.objects import COLOURS, HELD_OUT, KINDS, pairs

CUP = Fact('red', 'cup', 'table', '', 0.45, 0.10, (0.5, 0.25, 0.75, 0.5))
BALL = Fact('blue', 'ball', 'left hand', '', 0.45, -0.10, (0.1, 0.1, 0.2, 0.2))
BOOK = Fact('red', 'book', 'table', '', 0.40, 0.12, (0.6, 0.2, 0.8, 0.5))
APPLE = Fact('green', 'apple', 'on', 'red book', 0.40, 0.12, (0.6, 0.3, 0.7, 0.4))


def picture(photographer: Photographer, still: Still):
    """The first arrangement in which nothing is hidden."""
    return next(shot for shot in photographer.album(still, 20) if shot is not None)


@pytest.fixture(scope='module')
def photographer() -> Photographer:
    return Photographer(48)


NO_CELLS = np.full((CELLS, CELLS), -1)


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


def test_objects_that_are_not_there_are_denied():
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
    lines = lines_about([CUP, BOOK, BALL], NO_CELLS, np.random.default_rng(0))
    assert answers(lines)['detect everything'] == everything, 'from top to bottom'
    assert listed(['a', 'b', 'c']) == 'a, b and c'


def test_a_map_has_a_word_for_every_cell():
    segments = np.full((SHARP, SHARP), -1, np.int32)
    side = SHARP // CELLS
    segments[:side, side : 2 * side] = 7  # a whole cell
    segments[side : side + 2, :side] = 9  # a thirtieth of a cell: too little
    segments[-side // 4 :, -side:] = 9
    cells = cells_of(segments, [9, 7])
    assert (cells[0, 1], cells[1, 0], cells[-1, -1]) == (1, -1, 0)
    assert (cells >= 0).sum() == 2
    found = answers(maps([CUP, BALL], cells))
    words = found['name the colour in every cell'].split()
    assert (len(words), words[1], words[-1], words.count('-')) == (CELLS * CELLS, 'blue', 'red', CELLS * CELLS - 2)
    assert found['name the kind in every cell'].split()[1] == 'ball'


def test_every_line_about_a_scene_has_words():
    lines = lines_about([CUP, BALL, BOOK, APPLE], NO_CELLS, np.random.default_rng(3))
    kinds = {'caption', 'colour', 'count', 'exists', 'side', 'place', 'bin', 'hand', 'box', 'objects', 'cells'}
    assert {line['kind'] for line in lines} == kinds
    assert all(line['prompt'] and line['answer'] for line in lines)


def test_splits_share_no_pair_and_the_held_out_ones_are_always_shown():
    assert not set(vqa_pairs('train')) & set(vqa_pairs('heldout'))
    for seed in range(300):
        shown = {(t.colour, t.kind) for t in sample_still(seed, 'train').scene.objects}
        assert not shown & VQA_HELD_OUT
        held = {(t.colour, t.kind) for t in sample_still(seed, 'heldout').scene.objects}
        assert held & VQA_HELD_OUT
        assert len(held) == len(sample_still(seed, 'heldout').scene.objects)


def test_vqa_tells_of_what_actions_leave_out_and_never_the_other_way():
    assert set(vqa_pairs('train')) >= HELD_OUT
    assert not set(pairs('train')) & VQA_HELD_OUT
    assert all(colour not in COLOURS or kind not in KINDS for colour, kind in VQA_HELD_OUT)
    assert len({kind for _, kind in vqa_pairs('train')}) > len(KINDS)


def test_boxes_enclose_the_colour_of_the_object(photographer):
    seen = 0
    for seed in range(120):
        still = sample_still(seed, 'train')
        objects = still.scene.objects
        if len(objects) > 2 or objects[0].colour not in ('red', 'blue', 'yellow') or still.places[0] != 'table':
            continue
        shot = picture(Photographer(192), still)
        image, facts = shot.image, shot.facts
        top, left, bottom, right = (round(edge * 192) for edge in facts[0].box)
        patch = image[top:bottom, left:right].reshape(-1, 3).astype(int)
        hot = {'red': patch[:, 0] - patch[:, 1:].max(1), 'blue': patch[:, 2] - patch[:, :2].max(1)}
        strength = hot.get(objects[0].colour, patch[:, :2].min(1) - patch[:, 2])
        assert (strength > 60).mean() > 0.15, (seed, objects[0].label)
        seen += 1
        if seen == 3:
            break
    assert seen >= 2


@pytest.mark.parametrize(
    'view', [PictureView('head', (0.29, 0.3, 0.42, 0.42)), PictureView('front', (0.25, 0.25, 0.5, 0.5))]
)
def test_a_part_of_the_picture_has_the_boxes_of_that_part_and_no_scene_beyond_it(view):
    crop = view.crop
    whole, part = Photographer(192, PictureView(view.camera)), Photographer(192, view)
    compared = 0
    for seed in range(12):
        still = sample_still(seed, 'train')
        one, other = next(whole.album(still)), next(part.album(still))
        if other is None:
            continue
        assert one is not None
        assert np.array_equal(other.image, cropped(one.image, crop))
        for there, here in zip(one.facts, other.facts, strict=True):
            assert all(0 <= edge <= 1 for edge in here.box)
            top, left = (there.box[0] - crop[1]) / crop[3], (there.box[1] - crop[0]) / crop[2]
            if min(top, left) > 0.02:
                assert here.box[:2] == pytest.approx((top, left), abs=0.01)
                compared += 1
    assert compared > 4


def test_a_held_object_is_in_the_hand(photographer):
    seed = next(s for s in range(100) if 'right hand' in sample_still(s, 'train').places)
    facts = picture(photographer, sample_still(seed, 'train')).facts
    fact = next(fact for fact in facts if fact.where == 'right hand')
    assert fact.y < 0
    assert fact.place == 'in the right hand'


def test_the_same_seed_gives_the_same_pictures_and_lines(photographer):
    one, two = (list(scene_lines(3, 'train', each, 4)) for each in (photographer, Photographer(48)))
    assert len(one) == len(two) > 1
    for (picture_one, lines_one), (picture_two, lines_two) in zip(one, two, strict=True):
        assert (picture_one == picture_two).all()
        assert lines_one == lines_two


def test_arrangements_move_the_objects_of_a_scene_and_keep_what_they_are(photographer):
    still = next(s for s in (sample_still(i, 'train') for i in range(20)) if s.places == ('table', 'table'))
    shots = [shot for shot in photographer.album(still, 8) if shot is not None]
    assert len(shots) >= 4
    assert len({tuple(fact.label for fact in shot.facts) for shot in shots}) == 1
    assert len({(round(shot.facts[0].x, 3), round(shot.facts[0].y, 3)) for shot in shots}) == len(shots)


def test_half_of_the_training_scenes_look_like_the_robots_own_tasks_with_held_out_pairs_too():
    scenes = [sample_still(seed, 'train').scene for seed in range(60)]
    home = [s for s in scenes if all(obj.kind in KINDS and obj.colour in COLOURS for obj in s.objects)]
    assert 20 < len(home) < 45
    assert {(obj.colour, obj.kind) for scene in home for obj in scene.objects} & HELD_OUT


def test_files_are_complete_and_a_second_call_goes_on(tmp_path):
    number = write(tmp_path, 4, 0, 'train', 32, workers=1)
    lines = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
    assert len(lines) == number
    for line in lines:
        assert {'image', 'kind', 'prompt', 'answer', 'seed', 'split', 'things'} == set(line) - {'point'}
        assert cv2.imread(str(tmp_path / line['image'])).shape == (32, 32, 3)
        assert re.fullmatch(r'images/train-32px/\d{7}_0\.jpg', line['image'])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob('images/train-32px/*')}
    assert write(tmp_path, 4, 0, 'train', 32, workers=1) == number
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob('images/train-32px/*')}


def test_more_arrangements_of_the_same_scenes_are_not_taken_for_done(tmp_path):
    once = write(tmp_path, 2, 0, 'train', 32, workers=1)
    assert write(tmp_path, 2, 0, 'train', 32, workers=1, arrangements=4) > 2 * once


def test_images_of_another_size_are_not_taken_for_those_that_are_there(tmp_path):
    for size, folder in ((96, 'train'), (32, 'train-32px'), (96, 'train')):
        write(tmp_path, 1, 0, 'train', size, workers=1)
        lines = [json.loads(line) for line in (tmp_path / 'train.jsonl').read_text().splitlines()]
        assert lines
        for line in lines:
            assert Path(line['image']).parent == Path('images', folder)
            assert cv2.imread(str(tmp_path / line['image'])).shape == (size, size, 3)
    assert (tmp_path / 'parts' / 'train-0000000-0000001-1.part').exists()


def test_wrong_orders_are_refused(tmp_path):
    with pytest.raises(SimError, match="split 'test' is not known"):
        write(tmp_path, 1, split='test')
    with pytest.raises(SimError, match='ask for at least 1'):
        write(tmp_path, 0)
    with pytest.raises(SimError, match='0 arrangements of each scene'):
        write(tmp_path, 1, arrangements=0)
    with pytest.raises(SimError, match='image size 0x0 cannot be drawn'):
        write(tmp_path, 1, image_size=0)
