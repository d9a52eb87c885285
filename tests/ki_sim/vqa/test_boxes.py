"""Boxes are where the objects are, and words point at them while they are reached for."""

from __future__ import annotations

import re

import mujoco
import numpy as np

from ki_sim.record.batch import jobs, record_one
from ki_sim.record.record import load
from ki_sim.vqa.boxes import LEAST_PIXELS, SHARP, Pointer, box_of, box_text
from ki_sim.world.kinematics import Arms, pointing_down
from ki_sim.world.render import Cameras
from ki_sim.world.world import HOME_ARM, World

BOX = re.compile(r'^(reach for|grasp) the (.+) ((?:<loc\d{4}>){4})$')


def test_a_box_encloses_exactly_what_is_seen_of_a_body() -> None:
    segments = np.zeros((SHARP, SHARP), np.int32)
    segments[96:192, 48:144] = 5
    box = box_of(segments, 5)
    assert box == (0.25, 0.125, 0.5, 0.375)
    assert box_text(box) == '<loc0256><loc0128><loc0512><loc0384>'
    assert box_text((0.0, 0.0, 1.0, 1.0)) == '<loc0000><loc0000><loc1023><loc1023>'


def test_what_is_hardly_seen_has_no_box() -> None:
    segments = np.zeros((SHARP, SHARP), np.int32)
    segments[0, : LEAST_PIXELS - 1] = 5
    assert box_of(segments, 5) is None
    assert box_of(segments, 7) is None


def test_only_reaching_and_grasping_point_and_the_box_is_that_of_the_reach() -> None:
    with World('demo', 3, cameras=()) as world:
        label = world.episode.scene.objects[0].label
        pointer = Pointer(world)
        reach = pointer(f'reach for the {label}')
        assert BOX.match(reach)
        world.data.joint('object0').qpos[0] += 0.05
        assert pointer(f'reach for the {label}') == reach, 'the same reach, the same box'
        assert pointer(f'grasp the {label}').split()[-1] == reach.split()[-1]
        assert pointer(f'lift the {label}') == f'lift the {label}'
        assert pointer('reach for the sky') == 'reach for the sky'


def test_a_hand_in_the_way_cuts_nothing_off_a_box(arms: Arms) -> None:
    with World('demo', 3, cameras=()) as world:
        label, before = world.episode.scene.objects[0].label, Pointer(world)
        seen = before(f'reach for the {label}')
        over = world.object_position(0) + np.array([-0.03, 0.0, 0.08])
        joints, _ = arms.solve('left', over, pointing_down(0.0), HOME_ARM['left'], iterations=200)
        world.data.qpos[world.model.joint('left_joint1').qposadr[0] + np.arange(6)] = joints
        mujoco.mj_forward(world.model, world.data)
        with Cameras(world.model, SHARP, SHARP) as cameras:
            shown = box_of(cameras.segments(world.data, 'head'), world.model.body('object0').id)
        assert shown is None or box_text(shown) != seen.split()[-1], 'the hand hides some of it'
        assert Pointer(world)(f'reach for the {label}') == seen
        assert np.allclose(world.data.qpos[world.model.joint('left_joint1').qposadr[0] + np.arange(6)], joints)


def test_recordings_as_arrays_point_and_their_boxes_show_the_colour(tmp_path) -> None:
    (work,) = jobs(['demo'], 1, tmp_path, first_seed=3, format='npz', image_size=96)
    assert record_one(work).status == 'written'
    found = load(work.path)
    pointed = [BOX.match(text) for text in map(str, found['subtasks'])]
    assert {match[1] for match in pointed if match} == {'reach for', 'grasp'}
    first = pointed[0]
    assert first is not None
    assert first[2] == 'yellow block'
    top, left, bottom, right = (int(edge) * 96 // 1024 for edge in re.findall(r'\d{4}', first[3]))
    inside = found['images'](0, 'head')[top + 1 : bottom - 1, left + 1 : right - 1].reshape(-1, 3).mean(axis=0)
    assert min(inside[0], inside[1]) > 2 * inside[2], 'yellow: red and green, no blue'
