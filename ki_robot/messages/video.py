"""Cameras that come as video, packet by packet: H.264 and H.265 in foxglove's and ffmpeg_image_transport's messages.

A packet says only what has changed, so each must be decoded in the order in which it came, from a key frame on; after
a loss nothing is shown until the next key frame, because a decoder would smear what it has over what it misses.
Sources: https://docs.foxglove.dev/docs/sdk/schemas/compressed-video,
https://github.com/ros-misc-utilities/ffmpeg_image_transport_msgs
"""

from __future__ import annotations

import importlib
import re
import statistics
from collections import deque
from typing import Any

import numpy as np

from ki_common.errors import shown
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.images import MAX_IMAGE_BYTES, Image, as_bytes

VIDEO, PACKET = 'foxglove_msgs/msg/CompressedVideo', 'ffmpeg_image_transport_msgs/msg/FFMPEGPacket'
VIDEO_MESSAGES = {'video': VIDEO, 'ffmpeg': PACKET}  # by transport
LOST_PERIODS = 2.5  # two packets further apart than this: one between them was lost
KNOWN_PERIODS = 5  # before a period is known
_START = re.compile(rb'\x00\x00\x01(.)', re.DOTALL)  # of a unit (Annex B), and the first byte of its header
# Types of units that a key frame has: a picture that needs no other, as H.264 and H.265 number them.
_KEY_UNITS = {'h264': frozenset((5,)), 'hevc': frozenset(range(16, 22))}


class VideoDecoder:
    """Pictures of one video topic.

    Raises:
        RobotError: PyAV is not installed.
    """

    def __init__(self, max_bytes: int = MAX_IMAGE_BYTES) -> None:
        try:
            self._av = importlib.import_module('av')
        except ImportError as error:
            raise RobotError(
                "a camera comes as video, which needs PyAV; run `pip install 'ki_policy_node[video]'`."
            ) from error
        self._max_bytes = max_bytes
        self._codec = ''
        self._context: Any = None
        self._last_ns = 0
        self._periods: deque[int] = deque(maxlen=15)

    def reset(self) -> None:
        """Waits for a key frame again."""
        self._context = None
        self._last_ns = 0

    def decode(self, msg: Any, stamp_ns: int) -> Image:
        """The picture of the next packet: uint8 RGB (height, width, 3).

        Args:
            msg: A CompressedVideo or FFMPEGPacket, in the order in which they came.
            stamp_ns: Its stamp, by which a loss is noticed.

        Raises:
            Rejected: No key frame has come yet, or none since a loss; no picture, a damaged or too large one; another
                codec than H.264 and H.265.
        """
        data = as_bytes(msg.data)
        if data.size > self._max_bytes:
            raise Rejected(Reason.TOO_LARGE, f'a video packet has {data.size} bytes; at most {self._max_bytes} count.')
        packet, codec = data.tobytes(), codec_of(msg)
        if self._is_after_loss(stamp_ns) or codec != self._codec:
            self._context, self._codec = None, codec
        if self._context is None:
            if not is_key_frame(packet, codec):
                raise Rejected(Reason.NO_KEY_FRAME, 'waits for a key frame; let the encoder send one every second.')
            self._context = self._av.CodecContext.create(codec, 'r')
            self._context.thread_count = 1
            self._context.flags |= int(self._av.codec.context.Flags.low_delay)
        return self._picture(packet)

    def _is_after_loss(self, stamp_ns: int) -> bool:
        period, self._last_ns = stamp_ns - self._last_ns, stamp_ns
        known = statistics.median(self._periods) if len(self._periods) >= KNOWN_PERIODS else None
        if period > 0:
            self._periods.append(period)
        return known is not None and not 0 < period <= LOST_PERIODS * known

    def _picture(self, packet: bytes) -> Image:
        try:
            frames = self._context.decode(self._av.Packet(packet))
        except (self._av.error.FFmpegError, ValueError, MemoryError) as error:
            self._context = None
            raise Rejected(Reason.UNDECODABLE, f'a video packet of {len(packet)} bytes does not decode.') from error
        if not frames:
            raise Rejected(Reason.UNDECODABLE, f'a video packet of {len(packet)} bytes holds no picture.')
        frame = frames[-1]
        if frame.is_corrupt:
            self._context = None
            raise Rejected(Reason.UNDECODABLE, 'a video packet decodes to a damaged picture.')
        if frame.width * frame.height * 3 > self._max_bytes:
            self._context = None
            raise Rejected(Reason.TOO_LARGE, f'a video of {frame.width} x {frame.height} pixels is too large.')
        return np.asarray(frame.to_ndarray(format='rgb24'), dtype=np.uint8)


def codec_of(msg: Any) -> str:
    """`h264` or `hevc`, as the message names its codec or the encoder that made it."""
    label = str(msg.format if hasattr(msg, 'format') else msg.encoding)
    word = label.partition(';')[0].lower()
    if '264' in word:
        return 'h264'
    if '265' in word or 'hevc' in word:
        return 'hevc'
    raise Rejected(Reason.UNKNOWN_ENCODING, f'video in {shown(label)} is not read; publish h264 or h265.')


def is_key_frame(packet: bytes, codec: str) -> bool:
    """Whether a packet begins a picture that needs no other.

    Raises:
        Rejected: It is not in units that begin with a start code (Annex B).
    """
    headers = _START.findall(packet)
    if not headers:
        raise Rejected(Reason.BAD_LAYOUT, f'a video packet of {len(packet)} bytes has no start code (Annex B).')
    kinds = {header[0] & 0x1F if codec == 'h264' else header[0] >> 1 & 0x3F for header in headers}
    return bool(kinds & _KEY_UNITS[codec])
