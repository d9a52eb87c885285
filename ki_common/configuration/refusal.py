"""Pydantic's errors as our sentences: file, field, value, and what to write instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ki_common.configuration.schema import json_schema
from ki_common.errors import shown

_ABSENT = object()
_MANY = 6  # more choices than this are searched for the nearest one
_ALSO = 8  # other wrong fields that are named


def sentence_of(error: ValidationError, model: type[BaseModel], data: object, where: str) -> str:
    """One sentence for the first refusal, and the names of the other fields that are wrong, too.

    Args:
        error: What pydantic found.
        model: The configuration that was to be made.
        data: What it was to be made of; values are shown as they were given.
        where: The source, usually a file; may be empty.
    """
    schema = _schema_of(model)
    details = error.errors(include_url=False)
    details.sort(key=lambda each: each['type'] not in ('extra_forbidden', 'invalid_key'))  # a typo is two errors
    first, *others = (_Refusal(each, schema, data) for each in details)
    rest = list(dict.fromkeys(each.path for each in others if each.path != first.path and not first.explains(each)))
    also = f' Also wrong: {", ".join(rest[:_ALSO])}.' if rest else ''
    return f'{first.sentence(where or model.__name__)}{also}'


@cache
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    return json_schema(model)


class _Refusal:
    """One refused value: where it is, what it is, and what the schema wants there."""

    def __init__(self, detail: ErrorDetails, schema: Mapping[str, Any], data: object) -> None:
        self._detail = detail
        self.keys, self.value = _place(detail, data)
        self.path = dotted(self.keys)
        self._wanted = _schema_at(schema, self.keys)
        self._holder = _schema_at(schema, self.keys[:-1])
        self._nearest = nearest(str(self.keys[-1]), _fields(self._holder)) if self.keys else None

    def explains(self, other: _Refusal) -> bool:
        """Whether `other`, a missing field, is what this unknown field was meant to be."""
        kinds = (self._detail['type'], other._detail['type'])
        return kinds == ('extra_forbidden', 'missing') and other.keys == (*self.keys[:-1], self._nearest)

    def sentence(self, where: str) -> str:
        """The refusal in words; `where` is the source."""
        kind = self._detail['type']
        if kind in ('extra_forbidden', 'invalid_key') or (
            kind == 'missing' and isinstance(self._detail['loc'][-1], str)
        ):
            return f'{_joined(where, dotted(self.keys[:-1]))} {self._key_refused(kind)}.'
        rule = str(self._detail.get('ctx', {}).get('error', '')).rstrip('.') if kind == 'value_error' else ''
        if rule and _fields(self._wanted):  # a rule between fields, which names the first of them itself
            return f'{_joined(where, f"{self.path}.{rule}" if self.path else rule)}.'
        if self._detail['loc'][-1:] == ('[key]',):
            holder = _joined(where, dotted(self.keys[:-1]))
            return f'{holder} has the key {shown(self.keys[-1])}; {rule or "write a word"}.'
        said = 'has no value' if self.value is None else f'is {shown(self.value)}'
        return f'{_joined(where, self.path)} {said}; {rule or self._advice()}.'

    def _advice(self) -> str:
        """What to write in place of the value."""
        value, options = self.value, _options(self._wanted)
        kinds = {str(each.get('type')) for each in options}
        noun, ending = _noun(self._wanted), ''
        if isinstance(value, float) and not math.isfinite(value):
            noun = noun.replace('a number', 'a finite number')
        elif isinstance(value, str) and _unquoted(value, kinds):
            ending = ', without quotes'
        elif isinstance(value, bool | int | float) and kinds <= {'string', 'null'}:
            ending = ', in quotes'
        required = {name for each in _options(self._holder) for name in each.get('required', ())}
        last = self.keys[-1] if self.keys else None
        if 'null' in kinds or (value is None and isinstance(last, str) and last not in required):
            ending += ', or leave it out'
        choices = [str(each) for option in options for each in option.get('enum', ())]
        near = nearest(value, choices) if isinstance(value, str) else None
        return f'{f"did you mean {near!r}? Write" if near and len(choices) > _MANY else "write"} {noun}{ending}'

    def _key_refused(self, kind: str) -> str:
        key = self.keys[-1]
        if kind == 'missing':
            about = ' '.join(self._wanted.get('description', '').split('\n\n')[0].split()).rstrip('.')
            return f'has no field {str(key)!r}; add it as {_noun(self._wanted)}{f" ({about})" if about else ""}'
        known = ', '.join(_fields(self._holder)) or 'none'
        return f'has the unknown field {shown(key)}; ' + (
            f'did you mean {self._nearest!r}? Known are {known}' if self._nearest else f'known are {known}'
        )


def dotted(keys: Sequence[int | str]) -> str:
    """`cameras[1].topic` of ('cameras', 1, 'topic')."""
    text = ''
    for key in keys:
        text += f'[{key}]' if isinstance(key, int) else f'.{_plain(key)}' if text else _plain(key)
    return text


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a misspelt one most likely means."""
    return next(iter(difflib.get_close_matches(name, list(known), 1, 0.7)), None)


def _plain(key: str) -> str:
    return key if key.isidentifier() and len(key) <= 80 else shown(key)


def _joined(where: str, rest: str) -> str:
    return f'{where}: {rest}' if rest else where


def _place(detail: ErrorDetails, data: object) -> tuple[tuple[int | str, ...], object]:
    """The keys that lead to the refused value, and the value as it was given; names of a union's types are left out."""
    keys: list[int | str] = []
    value = data
    for key in detail['loc']:
        inner = _child(value, key)
        if inner is not _ABSENT:
            keys.append(key)
            value = inner
    if detail['type'] == 'missing' and isinstance(detail['loc'][-1], str):  # an int: a list is too short
        return (*keys, detail['loc'][-1]), None
    return tuple(keys), value


def _child(value: object, key: int | str) -> object:
    if isinstance(value, BaseModel):
        return getattr(value, str(key), _ABSENT)
    if isinstance(value, Mapping):
        return value.get(key, _ABSENT)
    if isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
        return value[key]
    return _ABSENT


def _schema_at(schema: Mapping[str, Any], keys: Sequence[int | str]) -> Mapping[str, Any]:
    """What the JSON Schema says of the value at `keys`; empty where it says nothing."""
    found: Mapping[str, Any] = schema
    for key in keys:
        options = [_resolved(each, schema) for each in _options(_resolved(found, schema))]
        if isinstance(key, int):
            inner = (_item(each, key) for each in options)
        else:
            inner = (
                each.get('properties', {}).get(key, each.get('additionalProperties'))
                for each in options
                if each.get('type') == 'object'
            )
        chosen = next((each for each in inner if isinstance(each, Mapping)), None)
        if chosen is None:
            return {}
        found = chosen
    return _resolved(found, schema)


def _item(part: Mapping[str, Any], index: int) -> Any:
    """What a list wants at a place: of a list of so many, each has its own."""
    places = part.get('prefixItems', ())
    return places[index] if 0 <= index < len(places) else part.get('items')


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """`part` with a reference replaced by what it names; a description beside the reference stays."""
    while '$ref' in part:
        part = {**schema['$defs'][part['$ref'].rpartition('/')[2]], **{k: v for k, v in part.items() if k != '$ref'}}
    if 'anyOf' in part:
        return {**part, 'anyOf': [_resolved(each, schema) for each in part['anyOf']]}
    return part


def _options(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(part.get('anyOf', [part]))


def _fields(part: Mapping[str, Any]) -> list[str]:
    """The fields of a configuration, or of one that may be left out."""
    return [name for each in _options(part) for name in each.get('properties', ())]


def _unquoted(text: str, kinds: set[str]) -> bool:
    """Whether a word would be one of the wanted kinds if it were not in quotes."""
    if 'boolean' in kinds and text.lower() in ('true', 'false', 'yes', 'no', 'on', 'off'):
        return True
    try:
        return bool(kinds & {'number', 'integer'}) and math.isfinite(float(text))
    except ValueError:
        return False


def _noun(wanted: Mapping[str, Any]) -> str:
    """What the schema wants, in words: `a whole number from 1 to 1000`, `one of raw, compressed`."""
    words = [_kind(each) for each in _options(wanted) if each.get('type') != 'null']
    return ' or '.join(dict.fromkeys(words))


def _kind(wanted: Mapping[str, Any]) -> str:
    if 'enum' in wanted or 'const' in wanted:
        choices = [str(each) for each in wanted.get('enum', [wanted.get('const')])]
        return f'one of {", ".join(choices)}' if len(choices) > 1 else choices[0]
    kind = wanted.get('type')
    if kind in ('number', 'integer'):
        return f'a {"whole number" if kind == "integer" else "number"}{_bounds(wanted, kind)}'
    if kind == 'array':
        return f'a list{_counts(wanted.get("minItems"), wanted.get("maxItems"))}'
    if kind == 'object':
        return 'a mapping of fields' if 'properties' in wanted else 'a mapping'
    return {'boolean': 'true or false', 'string': 'a word', 'null': 'nothing'}.get(str(kind), 'something else')


def _counts(least: int | None, most: int | None) -> str:
    if least is None and most is None:
        return ''
    words = f'at most {most}' if least is None else f'at least {least}' if most is None else f'{least} to {most}'
    words = f'{least}' if least == most else words
    return f' of {words} {"entry" if (most or least) == 1 else "entries"}'


def _bounds(wanted: Mapping[str, Any], kind: str) -> str:
    low, above = wanted.get('minimum'), wanted.get('exclusiveMinimum')
    high, below = wanted.get('maximum'), wanted.get('exclusiveMaximum')
    if low is not None and high is not None:
        return f' from {low:g} to {high:g}' if kind == 'number' else f' from {low} to {high}'
    named = (('of at least', low), ('above', above), ('of at most', high), ('below', below))
    words = ' and '.join(f'{word} {value:g}' for word, value in named if value is not None)
    return f' {words.replace("and of", "and")}' if words else ', such as 0.5 or 1e-3' if kind == 'number' else ''
