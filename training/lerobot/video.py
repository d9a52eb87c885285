"""Pictures of an index as mp4 whose every frame is found quickly: short groups, or the camera's own JPEGs."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_robot.messages.images import compressed_size
from training.errors import TrainingError

GROUP = 2  # frames from one keyframe to the next: a random frame costs at most two decodings
LUMA, CHROMA = (219, 16.0), (224, 128 - 128 * 224 / 255)  # spans of the limited range, and what is added to them
CODECS = {
    'h264': ('libx264', {'preset': 'ultrafast', 'crf': '23', 'tune': 'fastdecode'}),
    'copy': ('mjpeg', {}),
}


def check_size(path: Path, number: int, found: tuple[int, int], first: tuple[int, int]) -> None:
    """Refuse a picture of another width and height than the camera's first.

    Raises:
        TrainingError: it is.
    """
    if found != first:
        raise TrainingError(
            f'{path}: picture {number} is {found[0]} x {found[1]}, the first {first[0]} x {first[1]}; a camera of a '
            'dataset keeps its size. Index the recordings of each size apart, or with --store model.'
        )


class VideoWriter:
    """One mp4 file.

    Args:
        path: The file to make.
        fps: Pictures a second, a whole number.
        codec: `h264`, or `copy`, which stores JPEGs without decoding them.

    Raises:
        TrainingError: An unknown codec, or one that this build of FFmpeg lacks.
    """

    def __init__(self, path: Path, fps: int, codec: str = 'h264') -> None:
        import av

        if codec not in CODECS:
            raise TrainingError(f'codec is {codec!r}; choose one of {", ".join(CODECS)}.')
        self.path, self.fps, self.codec = path, fps, codec
        self.frames = 0
        self.size: tuple[int, int] | None = None
        self._decoder: Any = av.CodecContext.create('mjpeg', 'r')
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = av.open(str(path), 'w')
        self._stream: Any = None

    def add(self, data: NDArray[np.uint8]) -> None:
        """Appends one picture, given as JPEG or PNG.

        Raises:
            TrainingError: It does not decode, or has another size than the first.
        """
        import av

        try:
            if self.codec == 'copy':
                self._copy(data)
            else:
                self._encode(data)
        except av.error.FFmpegError as error:
            raise TrainingError(f'{self.path}: picture {self.frames} cannot be written: {error}.') from error
        self.frames += 1

    def _copy(self, data: NDArray[np.uint8]) -> None:
        import av

        if self._stream is not None:
            self._check_size(*compressed_size(data))
        else:
            frame = self._decoded(data)
            if bytes(data[:2]) != b'\xff\xd8':
                raise TrainingError(f'{self.path}: codec copy needs JPEG pictures; take h264.')
            self._open(frame, frame.format.name)
        packet = av.Packet(data.tobytes())
        packet.stream = self._stream
        packet.time_base = Fraction(1, self.fps)
        packet.pts = packet.dts = self.frames
        packet.duration = 1
        packet.is_keyframe = True
        self._container.mux(packet)

    def _encode(self, data: NDArray[np.uint8]) -> None:
        frame = self._decoded(data)
        if self._stream is None:
            # Two pixels share a colour in 4:2:0, so a picture of odd sides keeps every one.
            self._open(frame, 'yuv444p' if frame.width % 2 or frame.height % 2 else 'yuv420p')
        self._check_size(frame.width, frame.height)
        # Video is in the limited range; a camera's JPEG is in the full one.
        if (frame.format.name, self._stream.pix_fmt) == ('yuvj420p', 'yuv420p'):
            frame = _in_limited_range(frame)
        else:
            frame = frame.reformat(format=self._stream.pix_fmt, src_color_range=2, dst_color_range=1)
        frame.pts, frame.time_base = self.frames, Fraction(1, self.fps)
        for packet in self._stream.encode(frame):
            self._container.mux(packet)

    def _check_size(self, width: int, height: int) -> None:
        if self.size is not None:
            check_size(self.path, self.frames, (width, height), self.size)

    def _decoded(self, data: NDArray[np.uint8]) -> Any:
        import av

        if bytes(data[:2]) == b'\xff\xd8':
            # Straight to YUV: no way through RGB and back.
            frames = self._decoder.decode(av.Packet(data.tobytes()))
            if frames:
                return frames[0]
        import cv2

        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            raise TrainingError(f'{self.path}: picture {self.frames} does not decode.')
        return av.VideoFrame.from_ndarray(np.asarray(image, dtype=np.uint8), format='bgr24')

    def _open(self, frame: Any, pixels: str) -> None:
        name, options = CODECS[self.codec]
        self.size = (frame.width, frame.height)
        stream = self._container.add_stream(name, rate=self.fps, options=options)
        stream.width, stream.height = self.size
        stream.pix_fmt = pixels
        if self.codec != 'copy':
            stream.gop_size = GROUP
            stream.codec_context.gop_size = GROUP
            stream.codec_context.max_b_frames = 0
            stream.codec_context.thread_count = 1
            stream.codec_context.color_range = 1
        stream.time_base = Fraction(1, self.fps)
        self._stream = stream

    def close(self) -> int:
        """Ends the file; returns its size in bytes."""
        if self._stream is not None and self.codec != 'copy':
            for packet in self._stream.encode():
                self._container.mux(packet)
        self._container.close()
        return self.path.stat().st_size


def _in_limited_range(frame: Any) -> Any:
    """A frame of a JPEG as video of the same layout: 0..255 to 16..235, colours to 16..240. Quicker than swscale."""
    import av
    import cv2

    limited = av.VideoFrame(frame.width, frame.height, 'yuv420p')
    for place, (source, target) in enumerate(zip(frame.planes, limited.planes, strict=True)):
        span, rest = (LUMA, CHROMA)[place > 0]
        cv2.convertScaleAbs(_pixels(source), dst=_pixels(target), alpha=span / 255, beta=rest)
    return limited


def _pixels(plane: Any) -> NDArray[np.uint8]:
    """A plane of a frame, in place: (height, width), without what fills its lines up."""
    return np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def about(path: Path, codec: str) -> dict[str, Any]:
    """What meta/info.json says of a video."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return {
            'video.height': stream.height,
            'video.width': stream.width,
            'video.codec': {'h264': 'h264', 'copy': 'mjpeg'}[codec],
            'video.pix_fmt': stream.pix_fmt,
            'video.fps': int(stream.average_rate or 0),
            'video.channels': 3,
            'is_depth_map': False,
            'has_audio': False,
        }
