"""The simulated robot: exact repetition, commands it refuses, the emergency stop, what it senses."""

from __future__ import annotations

import numpy as np
import pytest

from ki_sim.errors import SimError
from ki_sim.expert.experts import correcting_steps
from ki_sim.world.controllers import Point, TrajectoryCommand
from ki_sim.world.robot import ARM_JOINTS, CAMERAS, GRIPPERS, LIMITS, SIDES
from ki_sim.world.world import World, clipped


def run(seed: int, steps: int = 12) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    with World('put_in_bin', seed, image_size=32) as world:
        start, states, images = clipped(world.observe(images=False).state), [], []
        for _ in range(steps):
            world.step(clipped(start + rng.normal(0, 0.05, 17)))
            observation = world.observe()
            states.append(world.data.qpos.copy())
            images += [observation.images[name] for name in CAMERAS]
    return states, images


def test_the_same_seed_gives_the_same_bits():
    (states, images), (again, images_again) = run(3), run(3)
    assert all((a == b).all() for a, b in zip(states, again, strict=True))
    assert all((a == b).all() for a, b in zip(images, images_again, strict=True))


def test_another_seed_gives_another_scene():
    with World('demo', 0, image_size=32) as one, World('demo', 1, image_size=32) as two:
        assert (one.image('head') != two.image('head')).any()


def test_another_goal_changes_the_words_and_not_the_picture():
    with World('demo', 4, goal=0, image_size=32) as one:
        picture, said = one.image('head'), one.instruction
        others = [World('demo', 4, goal=goal, cameras=()).instruction for goal in range(1, 8)]
        two = World('demo', 4, goal=3, image_size=32)
        assert (two.image('head') == picture).all()
        two.close()
    assert any(other != said for other in others)


def test_observations_hold_what_the_contract_asks_for():
    with World('demo', 0, image_size=(24, 40)) as world:
        observation = world.observe()
    assert set(observation.images) == set(CAMERAS)
    for image in observation.images.values():
        assert image.shape == (24, 40, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5
    assert observation.time_ns == 0


def test_at_rest_the_robot_stays_where_it_is(blind_world, still_action):
    world = blind_world()
    action, before = still_action(world), world.observe(images=False).state
    for _ in range(20):
        world.step(action)
    assert np.abs(world.observe(images=False).state - before).max() < 1e-3
    assert world.time_ns == 1_000_000_000


@pytest.mark.parametrize(
    ('column', 'value', 'said'),
    [
        (2, float('nan'), 'not finite'),
        (0, 3.0, 'left_joint1 = 3.0000, outside'),
        (6, 0.5, 'left_gripper = 0.5000'),
        (15, float('inf'), 'twist that is not finite'),
    ],
)
def test_a_bad_action_is_refused(blind_world, still_action, column, value, said):
    world = blind_world()
    action = still_action(world)
    action[column] = value
    with pytest.raises(SimError, match=said):
        world.step(action)
    assert world.time_ns == 0


def test_an_action_of_the_wrong_length_names_the_columns(blind_world):
    with pytest.raises(SimError, match=r'an action has 17 numbers \(left_joint1/position'):
        blind_world().step(np.zeros(14))


def test_the_base_drives_in_its_own_frame_and_brakes(blind_world, still_action):
    world = blind_world()
    action = still_action(world)
    action[16] = 0.8
    for _ in range(20):
        world.step(action)
    action[14:] = (-0.3, 0.0, 0.0)
    for _ in range(20):
        world.step(action)
    pose, twist = world.odometry()
    heading = pose[2]
    assert heading == pytest.approx(0.8, abs=0.05)
    assert np.allclose(pose[:2], -0.3 * np.array([np.cos(heading), np.sin(heading)]), atol=0.03)
    assert np.allclose(twist, (-0.3, 0.0, 0.0), atol=0.01)
    world.advance(600_000_000)  # no more commands: the base controller times out
    assert np.abs(world.odometry()[1]).max() < 0.01


def test_the_emergency_stop_holds_and_refuses_until_released(blind_world, still_action):
    world = blind_world()
    action = still_action(world)
    action[0] += 0.6
    action[14] = 0.3
    world.step(action)
    world.emergency_stop()
    where = world.observe(images=False).state
    with pytest.raises(SimError, match='emergency stop is pressed'):
        world.step(action)
    world.advance(500_000_000)
    assert np.abs(world.observe(images=False).state[:14] - where[:14]).max() < 0.06
    assert np.abs(world.odometry()[1]).max() < 0.01
    world.release()
    stopped = world.observe(images=False).state
    world.advance(300_000_000)
    assert np.abs(world.observe(images=False).state[:14] - stopped[:14]).max() < 0.01
    world.step(action)


def test_a_trajectory_of_many_points_is_followed(blind_world):
    world = blind_world()
    start = np.array([world.joint_states()[name][0] for name in ARM_JOINTS['right']])
    points = [Point(i * 100_000_000, start + 0.05 * i) for i in range(1, 5)]
    world.command_arm('right', TrajectoryCommand(ARM_JOINTS['right'], points))
    world.advance(700_000_000)
    end = [world.joint_states()[name][0] for name in ARM_JOINTS['right']]
    assert np.allclose(end, start + 0.2, atol=0.01)


def test_a_command_far_away_is_carried_out_at_the_joints_speed(blind_world, still_action):
    world = blind_world()
    action = still_action(world)
    action[0] = -1.6
    world.step(action)
    assert abs(world.joint_states()['left_joint1'][1]) < 2.9


def test_unknown_names_are_refused():
    with pytest.raises(SimError, match="task 'fold' is not known: use one of demo"):
        World('fold', 0)
    with pytest.raises(SimError, match="there is no camera 'nose'"):
        World('demo', 0, cameras=('nose',))
    with pytest.raises(SimError, match='seeds count from 0'):
        World('demo', -1)
    with World('demo', 0, cameras=()) as world:
        with pytest.raises(SimError, match="camera 'nose'"):
            world.image('nose')
        with pytest.raises(SimError, match='image size 4x9000'):
            world.image('head', (4, 9000))


def test_clipping_keeps_rows_inside_and_refuses_broken_ones():
    row = clipped(np.full(17, 9.0))
    assert row[0] == 2.4
    assert row[6] == 0.12
    assert row[16] == 1.2
    with pytest.raises(SimError, match='the policy is broken'):
        clipped(np.full(17, np.nan))


def test_a_gripper_feels_what_it_holds_and_nothing_else(blind_world, arms):
    world = blind_world('put_in_bin', 1)
    felt: dict[bool, list[float]] = {True: [], False: []}
    for step in correcting_steps(world, arms):
        world.step(step.action)
        for hand, index in ((side, index) for side in SIDES for index in world.touches.held(side) or (-1,)):
            felt[index >= 0].append(world.joint_states()[GRIPPERS[hand]].effort)
    assert np.median(felt[True]) == -LIMITS[GRIPPERS['left']].effort
    assert np.quantile(np.abs(felt[False]), 0.95) < 2


def test_gravity_and_contact_act_on_objects(blind_world, put):
    world = blind_world('demo', 0)
    put(world, 0, (0.45, 0.0, 1.0), 600_000_000)
    assert world.object_position(0)[2] == pytest.approx(0.72 + world.episode.scene.objects[0].height / 2, abs=0.005)
