"""What the `format` of a sensor_msgs/CompressedImage says about the picture inside.

`jpeg` and `png` say nothing; image_transport writes `ENCODING; jpeg compressed CONTENT`, where CONTENT is empty when
the file holds the pixels of ENCODING as they were, and `ENCODING; compressedDepth png` with a header before the file.
Source: https://github.com/ros-perception/image_transport_plugins (compressed_publisher.cpp, codec.cpp)
"""

from __future__ import annotations

from dataclasses import dataclass

DEPTH_HEADER_BYTES = 12  # compressedDepth: an int32 and the two float32 that turn inverse depth into metres


@dataclass(frozen=True)
class CompressedLabel:
    """A label, taken apart.

    Attributes:
        encoding: Of the picture in the file, such as `bgr8` or `16UC1`; empty when the label does not say.
        depth: Whether the file follows the header of compressedDepth.
        codec: `jpeg`, `png`, `rvl` ...; as the label has it.
    """

    encoding: str
    depth: bool
    codec: str

    @classmethod
    def parse(cls, text: str) -> CompressedLabel:
        """Never fails: what a driver made up says nothing."""
        source, semicolon, rest = text.partition(';')
        words = rest.split()
        if not semicolon or not words:
            return cls('', False, text.strip())
        if words[0] == 'compressedDepth':
            return cls(source.strip(), True, words[1] if len(words) > 1 else 'png')
        content = words[2] if len(words) > 2 and words[1] == 'compressed' else ''
        return cls(content or source.strip(), False, words[0])
