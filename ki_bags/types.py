"""Message types: the standard ones and ki_msgs, and those that only a recording itself describes."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

from ki_bags.errors import BagError
from ki_common.share import share_file
from ki_robot.messages.video import PACKET, VIDEO

SYSTEM = 'ki_msgs/msg'
MAX_REST = 16
# Messages of packages that few have installed, for recordings that do not carry their definition (SQLite).
VIDEO_DEFINITIONS = {
    VIDEO: 'builtin_interfaces/Time timestamp\nstring frame_id\nuint8[] data\nstring format\n',
    PACKET: (
        'std_msgs/Header header\nint32 width\nint32 height\nstring encoding\nuint64 pts\nuint8 flags\n'
        'bool is_bigendian\nuint8[] data\n'
    ),
}


@lru_cache(maxsize=1)
def typestore() -> Any:
    """The messages of Jazzy with those of ki_msgs, and of video.

    Raises:
        ShareError: The .msg files of ki_msgs are not installed.
    """
    from rosbags.typesys import Stores, get_types_from_msg, get_typestore

    store = get_typestore(Stores.ROS2_JAZZY)
    found: dict[str, Any] = {}
    for name, text in VIDEO_DEFINITIONS.items():
        found.update(get_types_from_msg(text, name))
    for path in sorted(share_file('ki_msgs', 'msg/EpisodeMarker.msg').parent.glob('*.msg')):
        found.update(get_types_from_msg(path.read_text(encoding='utf-8'), f'{SYSTEM}/{path.stem}'))
    store.register(found)
    return store


def full_name(name: str) -> str:
    """`sensor_msgs/msg/Image` for `sensor_msgs/Image` too."""
    parts = name.split('/')
    return f'{parts[0]}/msg/{parts[1]}' if len(parts) == 2 else name


def message(type_name: str, **fields: Any) -> Any:
    """A message of a known type, for writing without ROS."""
    return known(type_name)(**fields)


def known(type_name: str) -> Any:
    """The class of a known type.

    Raises:
        BagError: The type is in no definition at hand.
    """
    types = typestore().types
    if type_name not in types:
        raise BagError(f'The message type {type_name!r} is not known; give its definition along with the topic.')
    return types[type_name]


def definition(type_name: str) -> tuple[str, str]:
    """The text that recordings carry for a type (its own and all that it needs), and its RIHS01 hash."""
    known(type_name)
    text, _ = typestore().generate_msgdef(type_name, ros_version=2)
    return text, typestore().hash_rihs01(type_name)


def serialise(value: Any, type_name: str) -> bytes:
    """CDR of a message made by `message`."""
    return bytes(typestore().serialize_cdr(value, full_name(type_name)))


def deserialise(data: bytes, type_name: str) -> Any:
    """The message in CDR bytes of a known type; damaged bytes raise whatever the decoder meets."""
    return typestore().deserialize_cdr(data, full_name(type_name))


class Decoder:
    """Decodes the messages of one recording, with the recording's own definition where ours differs or is missing."""

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}
        self._texts: dict[str, str] = {}

    def learn(self, type_name: str, text: str) -> None:
        """Takes the definition of a type as the recording carries it (ros2msg)."""
        self._texts.setdefault(full_name(type_name), text)

    def decode(self, type_name: str, data: bytes) -> Any:
        """The message.

        Raises:
            BagError: No usable definition of the type.
            Exception: Whatever damaged CDR makes the decoder raise.
        """
        name = full_name(type_name)
        store = self._stores.get(name)
        if store is None:
            store = self._stores[name] = self._store(name)
        try:
            return store.deserialize_cdr(data, name)
        except Exception as error:
            from rosbags.serde import SerdeError  # here, so that rooms may name these types without rosbags

            if not isinstance(error, SerdeError) or 'size mismatch' not in str(error):
                raise
            return self._without_rest(store, data, name, error)

    def _without_rest(self, store: Any, data: bytes, name: str, error: Exception) -> Any:
        """The message in front of a few bytes that mean nothing.

        rclpy's `serialize_message`, which bags written in Python come from, reserves four bytes too many for every
        empty sequence of doubles: a JointState without velocities and efforts ends in eight bytes of memory.
        """
        from rosbags.serde import SerdeError

        for rest in range(4, MAX_REST + 1, 4):
            with contextlib.suppress(SerdeError):
                return store.deserialize_cdr(data[:-rest], name)
        raise error

    def _store(self, name: str) -> Any:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore

        base = typestore()
        text = self._texts.get(name)
        if not text:
            known(name)
            return base
        try:
            theirs = get_types_from_msg(text, name)
            own = get_typestore(Stores.EMPTY)
            own.register(theirs)
            if name in base.types and own.hash_rihs01(name) == base.hash_rihs01(name):
                return base
            return own
        except Exception as error:
            if name in base.types:
                return base
            raise BagError(f'The recording describes {name} in a way that cannot be parsed: {error}.') from error
