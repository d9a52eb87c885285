"""YAML files as plain data: nulls, booleans, numbers, words, lists and mappings of words; nothing else.

Differences from PyYAML's safe loader, each because the other way let a mistake through or a file blow up:
    a key that is given twice is refused;
    `1e-3` is a number (YAML 1.1 reads a word) and `010` and `1:30` are words (YAML 1.1 reads 8 and 90);
    a date is a word; tags of other types (`!!python/...`, `!!binary`, `!!set`) are refused;
    anchors and aliases are taken up to `MAX_VALUES` values in all, so that a few lines cannot expand to gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml

from ki_common.errors import ConfigError, KiError, shown

MAX_FILE_BYTES = 1 << 20
MAX_VALUES = 100_000  # of a file, aliases expanded

_TAG = 'tag:yaml.org,2002:'
_NUMBER_START = list('-+0123456789.')


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars to null, booleans, integers and floats, and constructs nothing else."""

    # PyYAML's stubs call it an instance variable
    yaml_implicit_resolvers: ClassVar[dict[Any, Any]] = {}  # type: ignore[misc]
    yaml_constructors: ClassVar[dict[Any, Any]] = {}


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node), 0)


def _number(loader: _Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace('.inf', 'inf').replace('.nan', 'nan'))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[object, object]:
    merged: dict[object, object] = {}
    own: dict[object, object] = {}
    for key_node, value_node in node.value:
        value = loader.construct_object(value_node, deep=True)
        if key_node.tag == f'{_TAG}merge':
            for each in reversed(value if isinstance(value, list) else [value]):
                if not isinstance(each, dict):
                    raise _refusal(f'<< merges {shown(each)}; it merges mappings only', key_node)
                merged |= each
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | None):
            raise _refusal(f'the key {shown(key)} is no word', key_node)
        if key in own:
            raise _refusal(f'the key {shown(key)} is given twice; keep one', key_node)
        own[key] = value
    return merged | own


def _other_tag(loader: _Loader, node: yaml.Node) -> object:
    tag = node.tag.replace(_TAG, '!!')
    raise _refusal(f'the tag {shown(tag)} is not allowed; write plain values, lists and mappings', node)


def _refusal(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


for _kind, _pattern, _start in (
    ('merge', r'<<', ['<']),
    ('null', r'~|null|Null|NULL|', ['~', 'n', 'N', '']),
    ('bool', r'yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF', list('yYnNtTfFoO')),
    ('int', r'[-+]?(0|[1-9](_?[0-9])*|0b[01]+|0o[0-7]+|0x[0-9a-fA-F]+)', _NUMBER_START),
    (
        'float',
        r'[-+]?([0-9](_?[0-9])*\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?'
        r'|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)',
        _NUMBER_START,
    ),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f'(?:{_pattern})$'), _start)


_CONSTRUCTORS: dict[str | None, Callable[[Any, Any], Any]] = {
    f'{_TAG}null': yaml.SafeLoader.construct_yaml_null,
    f'{_TAG}bool': yaml.SafeLoader.construct_yaml_bool,
    f'{_TAG}int': _whole_number,
    f'{_TAG}float': _number,
    f'{_TAG}str': yaml.SafeLoader.construct_yaml_str,
    f'{_TAG}seq': lambda loader, node: loader.construct_sequence(node, deep=True),
    f'{_TAG}map': _mapping,
    None: _other_tag,
}
_Loader.yaml_constructors.update(_CONSTRUCTORS)


def read_yaml(path: str | Path, raises: type[KiError] = ConfigError) -> Any:
    """The content of a YAML file of at most 1 MiB of UTF-8.

    Raises:
        KiError: of the type `raises`; no such file, no UTF-8, no YAML, or one of the refusals above, with the line.
    """
    return parse_yaml(read_text(path, raises), str(path), raises)


def read_text(path: str | Path, raises: type[KiError] = ConfigError) -> str:
    """The text of a configuration file: at most 1 MiB of UTF-8."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise raises(f'{path} has {path.stat().st_size} bytes; a configuration has at most {MAX_FILE_BYTES}.')
        return path.read_text(encoding='utf-8')
    except FileNotFoundError:
        raise raises(f'{path} cannot be read: there is no such file.') from None
    except UnicodeDecodeError as error:
        raise raises(f'{path} cannot be read: byte {error.start} is no UTF-8; save it as UTF-8.') from error
    except (OSError, ValueError) as error:
        raise raises(f'{path} cannot be read: {getattr(error, "strerror", None) or error}.') from error


def parse_yaml(text: str, where: str, raises: type[KiError] = ConfigError) -> Any:
    """`text` as plain data; `where` names it in errors, usually the file."""
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _expanded_size(root, {})
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = f', line {error.problem_mark.line + 1}' if error.problem_mark else ''
        raise raises(f'{where}{line}: {_problem(error)}.') from error
    except yaml.reader.ReaderError as error:
        at = f'{where}, line {text.count(chr(10), 0, error.position) + 1}'
        character = f'U+{ord(text[error.position]):04X}'
        raise raises(f'{at}: the character {character} is not allowed in YAML; remove it.') from error
    except RecursionError as error:
        raise raises(f'{where} nests too deeply to be read; flatten it.') from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, AttributeError) as error:
        # ValueError and its kin: PyYAML lets a malformed number or merge key escape unwrapped.
        raise raises(f'{where} is not valid YAML: {shown(str(error))}.') from error


def _problem(error: yaml.MarkedYAMLError) -> str:
    problem = ' '.join((error.problem or error.context or 'not valid YAML').split())
    if "'\\t'" in problem:
        return 'a tab begins a value; indent with spaces'
    return problem


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values `node` has with its aliases expanded; an anchor that holds itself is endless, so refused."""
    if id(node) in sizes:
        if sizes[id(node)] == 0:
            raise _refusal('this anchor holds an alias to itself; write the values out', node)
        return sizes[id(node)]
    sizes[id(node)] = 0
    size = 1
    if isinstance(node, yaml.SequenceNode):
        size += sum(_expanded_size(each, sizes) for each in node.value)
    elif isinstance(node, yaml.MappingNode):
        size += sum(_expanded_size(each, sizes) for pair in node.value for each in pair)
    if size > MAX_VALUES:
        raise _refusal(f'this has more than {MAX_VALUES} values, aliases expanded; write fewer', node)
    sizes[id(node)] = size
    return size
