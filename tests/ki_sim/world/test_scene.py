"""Scenes: drawn from seeds, with room between objects, and compiled exactly as drawn."""

from __future__ import annotations

import itertools
import math

import mujoco
import numpy as np
import pytest

from ki_sim.errors import SimError
from ki_sim.world.objects import ALL_COLOURS, ALL_KINDS, HELD_OUT, SceneObject, check_colour, check_kind, pairs
from ki_sim.world.scene import TABLE_TOP, WORK_AREA, Pose, Scene, place, scene_xml
from ki_sim.world.shapes import shapes


def test_the_same_seed_draws_the_same_objects():
    wanted = [('red', 'block'), ('blue', 'cup'), ('green', 'can')]
    one, two = (place(np.random.default_rng(5), wanted) for _ in range(2))
    assert one == two
    assert one != place(np.random.default_rng(6), wanted)


def test_objects_lie_inside_the_area_with_room_for_fingers():
    for seed in range(20):
        objects = place(
            np.random.default_rng(seed), [('red', 'block'), ('blue', 'cup'), ('green', 'can'), ('red', 'plate')]
        )
        for obj in objects:
            assert WORK_AREA[0][0] <= obj.x <= WORK_AREA[0][1]
            assert WORK_AREA[1][0] <= obj.y <= WORK_AREA[1][1]
        for a, b in itertools.combinations(objects, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) - a.reach - b.reach >= 0.045


def test_too_many_objects_are_refused():
    with pytest.raises(SimError, match='20 objects do not fit'):
        place(np.random.default_rng(0), [('red', 'plate')] * 20)


@pytest.mark.parametrize('kind', ALL_KINDS)
def test_every_kind_stands_still_on_the_table(kind):
    width, height = (np.mean(span) for span in (ALL_KINDS[kind].width, ALL_KINDS[kind].height))
    obj = SceneObject('red', kind, width, height, 0.45, 0.0, 0.3)
    model = mujoco.MjModel.from_xml_string(scene_xml(Scene((obj,))))
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 200)
    body = data.body('object0')
    assert body.xmat[8] > 0.98
    assert abs(body.xpos[2] - TABLE_TOP - height / 2) < 0.012
    assert np.hypot(body.xpos[0] - 0.45, body.xpos[1]) < 0.01


def test_poses_go_out_and_back():
    pose = Pose(0.3, -0.4, 0.7)
    assert np.allclose(pose.into(*pose.out(0.5, 0.2)), (0.5, 0.2))


def test_unknown_words_are_refused_with_those_there_are():
    with pytest.raises(SimError, match="object 'cub' is not known: use one of block"):
        check_kind('cub')
    with pytest.raises(SimError, match="colour 'mauve' is not known: use one of red"):
        check_colour('mauve')
    with pytest.raises(SimError, match="split 'test' is not known"):
        pairs('test')


def test_splits_share_no_pair_and_miss_none():
    train, held = set(pairs('train')), set(pairs('heldout'))
    assert not train & held
    assert held == HELD_OUT
    assert len(train) + len(held) == 48


def test_every_held_out_word_is_known_from_other_pairs():
    train = pairs('train')
    for colour, kind in HELD_OUT:
        assert sum(colour == c for c, _ in train) >= 4
        assert sum(kind == k for _, k in train) >= 4


def test_all_kinds_are_drawn_in_all_colours():
    for kind, colour in itertools.product(ALL_KINDS, ALL_COLOURS):
        assert '<geom' in shapes(SceneObject(colour, kind, 0.06, 0.06, 0, 0, 0))
