"""Strict reading of YAML: every key known, every value of its type, every refusal with file, field, value and mend."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import yaml

from ki_common.errors import shown
from ki_robot.errors import RobotError

MAX_FILE_BYTES = 1 << 20
T = TypeVar('T')


class _Loader(yaml.SafeLoader):
    """The safe loader, which also refuses a key that is given twice."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, object]:
    loader.flatten_mapping(node)
    mapping: dict[Hashable, object] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(None, None, f'key {shown(key)} is not a word', key_node.start_mark)
        if key in mapping:
            raise yaml.constructor.ConstructorError(
                None, None, f'key {shown(key)} is given twice; keep one', key_node.start_mark
            )
        mapping[key] = loader.construct_object(value_node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)


def parse_yaml(text: str, where: str) -> object:
    """`text` as plain Python data; any flaw of the YAML is a RobotError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise RobotError(f'{where}, line {line}: {error.problem or error.context}.') from error
    except RecursionError as error:
        raise RobotError(f'{where} nests too deeply to be read; flatten it.') from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # ValueError and its kin: PyYAML lets a malformed date, number or merge key escape unwrapped.
        raise RobotError(f'{where} is not valid YAML: {shown(str(error))}.') from error


def read_yaml(path: Path) -> object:
    """The content of a YAML file of at most 1 MiB of UTF-8."""
    return parse_yaml(read_text(path), str(path))


def read_text(path: Path) -> str:
    """The text of a configuration file: at most 1 MiB of UTF-8."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RobotError(f'{path} has {path.stat().st_size} bytes; a configuration has at most {MAX_FILE_BYTES}.')
        return path.read_text(encoding='utf-8')
    except (OSError, ValueError) as error:
        raise RobotError(f'{path} cannot be read: {error}.') from error


class Fields:
    """One mapping being read: `take` each known key, then `done` refuses what is left.

    Args:
        data: What YAML gave; anything but a mapping with string keys is refused.
        where: File and field path for messages, such as `robot.yaml: cameras[1]`.
    """

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise RobotError(f'{where} is {shown(data)}; write a mapping of fields there.')
        self._left = dict(data)
        self._known: list[str] = []
        self.where = where

    def _take(self, key: str, default: object) -> object:
        self._known.append(key)
        return self._left.pop(key, default)

    def refuse(self, key: str, value: object, mend: str) -> RobotError:
        """The error for one field."""
        return RobotError(f'{self.where}.{key} is {shown(value)}; {mend}.')

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.optional_number(key)
        if value is None and default is None:
            raise RobotError(f'{self.where} has no field {key!r}; add it as a number.')
        return default if value is None and default is not None else value  # type: ignore[return-value]

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None where the field is absent or null."""
        value = self._take(key, None)
        if value is None:
            return None
        # YAML 1.1 reads 1e-3 (no dot) as a word, and yes/no as booleans: both are told, not guessed.
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.refuse(key, value, 'write a number, such as 0.5 or 1.0e-3')
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.refuse(key, value, 'write a finite number, or leave the field out')
        return number + 0.0  # -0.0 and 0.0 are one limit, and must hash as one

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = 1 << 20) -> int:
        """A whole number from `low` to `high`."""
        value = self._take(key, default)
        if value is None:
            raise RobotError(f'{self.where} has no field {key!r}; add it as a whole number.')
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.refuse(key, value, f'write a whole number from {low} to {high}')
        return value

    def optional_integer(self, key: str, low: int = 1, high: int = 1 << 20) -> int | None:
        """A whole number from `low` to `high`, or None where the field is absent or null."""
        if self._left.get(key) is None:
            self._take(key, None)
            return None
        return self.integer(key, None, low, high)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._take(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, value, 'write true or false')
        return value

    def text(self, key: str, default: str | None = None, fits: Callable[[str], bool] = bool, mend: str = '') -> str:
        """A string for which `fits` holds; `mend` says what to write instead."""
        value = self._take(key, default)
        mend = mend or 'write a word'
        if value is None:
            raise RobotError(f'{self.where} has no field {key!r}; {mend}.')
        if not isinstance(value, str) or not fits(value):
            raise self.refuse(key, value, mend)
        return value

    def choice(self, key: str, choices: Iterable[str], default: str | None = None) -> str:
        """One of `choices`."""
        allowed = tuple(choices)
        return self.text(key, default, lambda value: value in allowed, f'write one of {", ".join(allowed)}')

    def items(self, key: str, read: Callable[[object, str], T], required: bool = True) -> tuple[T, ...]:
        """A list, each element read by `read(element, where)`."""
        value = self._take(key, None if required else [])
        if value is None:
            raise RobotError(f'{self.where} has no field {key!r}; add it as a list.')
        if not isinstance(value, list):
            raise self.refuse(key, value, 'write a list')
        return tuple(read(item, f'{self.where}.{key}[{index}]') for index, item in enumerate(value))

    def child(self, key: str) -> Fields:
        """A nested mapping; an absent one reads as empty."""
        value = self._take(key, None)
        return Fields({} if value is None else value, f'{self.where}.{key}')

    def scalars(self, key: str) -> dict[str, bool | float | str]:
        """A mapping of words to booleans, finite numbers or strings."""
        value = self._take(key, None)
        inner = Fields({} if value is None else value, f'{self.where}.{key}')
        found: dict[str, bool | float | str] = {}
        for name, item in list(inner._left.items()):
            if not isinstance(name, str) or len(name) > 64 or item is None:
                raise inner.refuse(shown(name), item, 'name an option by a word, and give it a value')
            found[name] = item if isinstance(item, (bool, str)) else inner.number(name)
        return found

    def done(self) -> None:
        """Refuses every field that nobody took."""
        if self._left:
            stranger = next(iter(self._left))
            raise RobotError(
                f'{self.where} has the unknown field {shown(stranger)}; known are {", ".join(sorted(self._known))}.'
            )
