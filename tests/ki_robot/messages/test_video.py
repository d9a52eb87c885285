"""Video topics: every packet counts, from a key frame on, and nothing smeared is shown after a loss."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.video import VideoDecoder, codec_of, is_key_frame
from ki_robot.observation.buffer import BufferSettings, ObservationBuffer
from ki_robot.observation.observation import StreamState

av = pytest.importorskip('av')

PERIOD_NS, START_NS = 33_000_000, 1_700_000_000_000_000_000
CODERS = {'h264': 'libx264', 'h265': 'libx265'}


def shade(number: int) -> int:
    return 20 + 5 * number


def packets(codec: str, count: int = 20, group: int = 10) -> list[bytes]:
    """Pictures of one shade each, a key frame every `group`."""
    context: Any = av.CodecContext.create(CODERS[codec], 'w')
    context.width = context.height = 64
    context.pix_fmt, context.time_base, context.gop_size, context.max_b_frames = 'yuv420p', Fraction(1, 30), group, 0
    extra = {'x265-params': 'log-level=none:repeat-headers=1:scenecut=0'} if codec == 'h265' else {'sc_threshold': '0'}
    context.options = {'preset': 'ultrafast', 'tune': 'zerolatency', **extra}
    made = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade(number), np.uint8), format='rgb24')
        frame.pts = number
        made += [bytes(packet) for packet in context.encode(frame)]
    return made + [bytes(packet) for packet in context.encode(None)]


def message(kind: str, codec: str, data: bytes, stamp_ns: int) -> Any:
    stamp = SimpleNamespace(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    payload = np.frombuffer(data, np.uint8)
    if kind == 'video':
        return SimpleNamespace(timestamp=stamp, frame_id='', data=payload, format=codec)
    encoding = {'h264': 'h264;yuv420p;bgr8;bgr8', 'h265': 'hevc_nvenc'}[codec]
    header = SimpleNamespace(stamp=stamp, frame_id='')
    return SimpleNamespace(header=header, width=64, height=64, encoding=encoding, pts=0, flags=0, data=payload)


def decoded(decoder: VideoDecoder, kind: str, codec: str, numbered: list[tuple[int, bytes]]) -> Iterator[Any]:
    """Of each packet the shade of its picture, or why it has none."""
    for number, data in numbered:
        stamp_ns = START_NS + number * PERIOD_NS
        try:
            yield int(decoder.decode(message(kind, codec, data, stamp_ns), stamp_ns).mean())
        except Rejected as error:
            yield error.reason


@pytest.mark.parametrize('kind', ['video', 'ffmpeg'])
@pytest.mark.parametrize('codec', ['h264', 'h265'])
def test_each_packet_gives_its_own_picture(kind: str, codec: str) -> None:
    made = packets(codec)
    found = list(decoded(VideoDecoder(), kind, codec, list(enumerate(made))))
    np.testing.assert_allclose(found, [shade(number) for number in range(20)], atol=3)
    assert [is_key_frame(data, codec_of(message(kind, codec, data, 0))) for data in made[:11]] == [
        True, *[False] * 9, True
    ]  # fmt: skip


def test_nothing_is_shown_before_the_first_key_frame_or_after_a_loss() -> None:
    made = list(enumerate(packets('h264', 40)))
    found = list(decoded(VideoDecoder(), 'video', 'h264', made[4:24] + made[26:]))
    waiting = [place for place, each in enumerate(found) if each is Reason.NO_KEY_FRAME]
    assert waiting == [*range(6), *range(20, 24)], 'packets 4 to 9 before the first, 26 to 29 after the loss'
    shown = [each for each in found if each is not Reason.NO_KEY_FRAME]
    np.testing.assert_allclose(shown, [shade(number) for number in [*range(10, 24), *range(30, 40)]], atol=3)


@pytest.mark.parametrize(
    ('codec', 'data', 'reason'),
    [
        ('h264', b'', Reason.BAD_LAYOUT),
        ('h264', b'no start code', Reason.BAD_LAYOUT),
        ('h264', b'\x00\x00\x01\x65' + bytes(50), Reason.UNDECODABLE),
        ('vp9', b'\x00\x00\x01\x65', Reason.UNKNOWN_ENCODING),
        ('', b'\x00\x00\x01\x65', Reason.UNKNOWN_ENCODING),
    ],
)
def test_a_packet_that_is_none_is_refused_with_its_reason(codec: str, data: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        VideoDecoder().decode(message('video', codec, data, START_NS), START_NS)
    assert caught.value.reason is reason


def test_a_damaged_packet_hides_all_up_to_the_next_key_frame() -> None:
    made = list(enumerate(packets('h264', 30)))
    number, data = made[13]
    made[13] = (number, data[:5] + bytes(255 - each for each in data[5:]))
    found = list(decoded(VideoDecoder(), 'video', 'h264', made))
    # What a decoder conceals is not told apart from what is there; what it refuses hides the rest of the group.
    if isinstance(found[13], Reason):
        assert all(isinstance(each, Reason) for each in found[13:20])
    np.testing.assert_allclose(found[20:], [shade(number) for number in range(20, 30)], atol=3)


def test_the_live_buffer_shows_the_newest_picture_of_a_video() -> None:
    robot = load_contract('arm_single')
    cameras = tuple(camera.replace(transport='video') for camera in robot.cameras)
    buffer = ObservationBuffer(robot.replace(cameras=cameras), BufferSettings(require_instruction=False))
    made = packets('h264', 12)
    stamps = [START_NS + number * PERIOD_NS for number in range(12)]
    taken = [buffer.push('scene', message('video', 'h264', made[n], stamps[n]), stamps[n]) for n in range(3, 12)]
    assert taken == [False] * 7 + [True] * 2
    _, picture = buffer.newest('scene')
    assert picture.shape == (64, 64, 3)
    np.testing.assert_allclose(picture.mean(), shade(11), atol=3)
    report = next(each for each in buffer.health(stamps[-1]) if each.name == 'scene')
    assert report.state is StreamState.OK
    assert report.rejected == {Reason.NO_KEY_FRAME: 7}
    # A packet that comes too old is refused, and still counts for the next one.
    late = START_NS + 12 * PERIOD_NS
    more = packets('h264', 14)
    assert not buffer.push('scene', message('video', 'h264', more[12], late), late + 10**9)
    assert buffer.push('scene', message('video', 'h264', more[13], late + PERIOD_NS), late + PERIOD_NS + 10**9) is False
    buffer.flush()
    assert not buffer.push('scene', message('video', 'h264', made[11], late), late), (
        'a new time begins with a key frame'
    )
