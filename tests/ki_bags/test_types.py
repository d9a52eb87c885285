"""Message types: bytes behind a message that mean nothing are let pass, more than that is damage."""

from __future__ import annotations

import numpy as np
import pytest
from rosbags.serde import SerdeError

from ki_bags.types import Decoder, message, serialise

NAME = 'std_msgs/msg/Float64MultiArray'


def data() -> bytes:
    layout = message('std_msgs/msg/MultiArrayLayout', dim=[], data_offset=0)
    return serialise(message(NAME, layout=layout, data=np.array([1.0, 2.0])), NAME)


@pytest.mark.parametrize('rest', [0, 4, 8, 12])
def test_what_rclpy_leaves_behind_a_message_is_ignored(rest):
    decoded = Decoder().decode(NAME, data() + bytes(range(rest)))
    assert decoded.data.tolist() == [1.0, 2.0]


def test_more_than_that_is_damage():
    with pytest.raises(SerdeError, match='size mismatch'):
        Decoder().decode(NAME, data() + bytes(64))


def test_a_cut_message_is_damage():
    with pytest.raises(SerdeError):
        Decoder().decode(NAME, data()[:-6])
