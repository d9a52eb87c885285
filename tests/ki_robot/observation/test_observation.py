"""Putting an observation together: order, stamps, and what may not be missing."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_robot.contract.parts import Camera
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import fill_compressed
from ki_robot.observation.observation import build_observation, decode_camera
from ki_robot.transforms import cropped

CAMERAS = ('head', 'left_wrist', 'right_wrist')


def test_images_and_state_come_in_the_order_of_the_contract() -> None:
    contract = load_contract('bimanual_mobile')
    images = {name: np.full((2, 2, 3), index, np.uint8) for index, name in enumerate(reversed(CAMERAS))}
    stamps = {'head': 30, 'left_wrist': 20, 'right_wrist': 40}
    states = {'odom': np.arange(3.0), 'joint_states': np.arange(14.0) + 10}
    observation = build_observation(contract, images, stamps, states, {'odom': 25, 'joint_states': 35}, 'go', 'i1', 2)
    assert list(observation.images) == list(CAMERAS)
    assert (observation.stamp_ns, observation.state_stamp_ns, observation.epoch) == (20, 25, 2)
    np.testing.assert_array_equal(observation.state, [*range(10, 24), 0, 1, 2])


def test_building_needs_what_the_contract_requires() -> None:
    contract = load_contract('bimanual_mobile')
    stamp = 1
    states = {'joint_states': np.zeros(14), 'odom': np.zeros(3)}
    stamps = {'joint_states': stamp, 'odom': stamp}
    with pytest.raises(RobotError, match="camera 'head' of bimanual_mobile is missing"):
        build_observation(contract, {}, {}, states, stamps)
    images = dict.fromkeys(CAMERAS, np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(RobotError, match="state stream 'odom'"):
        build_observation(contract, images, dict.fromkeys(CAMERAS, stamp), {'joint_states': np.zeros(14)}, stamps)


def test_a_camera_decodes_by_its_transport_and_size() -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    png = SimpleNamespace(format='png', data=cv2.imencode('.png', pixels)[1])
    raw = SimpleNamespace(height=4, width=6, encoding='rgb8', is_bigendian=0, step=18, data=pixels.reshape(-1))
    for transport, msg in (('compressed', png), ('raw', raw)):
        camera = Camera.parse({'name': 'head', 'topic': 'head', 'transport': transport, 'max_age_s': 0.1})
        assert decode_camera(camera.replace(width=6, height=4), msg).shape == (4, 6, 3)
        with pytest.raises(Rejected, match='image is 6 x 4; the contract says 6 x 5') as caught:
            decode_camera(camera.replace(width=6, height=5), msg)
        assert caught.value.reason is Reason.WRONG_SIZE


@pytest.mark.parametrize('crop', [None, (0.25, 0.25, 0.5, 0.5)])
def test_a_reduced_picture_still_fills_the_crop_and_is_held_to_the_size_of_the_whole(make, crop):
    contract = load_contract('bimanual_mobile')
    camera = contract.cameras[0].replace(transport='compressed', width=160, height=120, crop=crop)
    msg = fill_compressed(make('sensor_msgs/CompressedImage'), np.full((120, 160, 3), 90, np.uint8), 1)
    assert decode_camera(camera, msg).shape == (120, 160, 3)
    small = decode_camera(camera, msg, size=40)
    assert small.shape == ((30, 40, 3) if crop is None else (60, 80, 3))
    assert max(cropped(small, crop).shape) >= 40
    for size in (None, 40):
        with pytest.raises(Rejected, match='image is 160 x 120; the contract says 159 x 119'):
            decode_camera(camera.replace(width=159, height=119), msg, size=size)
