"""YAML as plain data: what is a number, what is refused, and how it is said."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_common.configuration.yaml_reader import MAX_FILE_BYTES, parse_yaml, read_yaml
from ki_common.errors import ConfigError, KiError


class OtherError(KiError):
    pass


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-3', 0.001), ('1E3', 1000.0), ('-1.5e+2', -150.0), ('1.', 1.0), ('.5', 0.5), ('2.5', 2.5),
        ('.inf', math.inf), ('-.inf', -math.inf), ('30_000', 30000), ('0', 0), ('-7', -7), ('+7', 7), ('0x1F', 31),
        ('0o17', 15), ('0b101', 5),
        ('true', True), ('No', False), ('on', True), ('~', None), ('null', None), ('', None), ('a: ', {'a': None}),
        ('word', 'word'), ('"1e-3"', '1e-3'), ('1e', '1e'), ('e3', 'e3'), ('.', '.'), ('-', [None]), ('=', '='),
        ('010', '010'), ('1:30', '1:30'), ('2024-01-31', '2024-01-31'), ('1.2.3', '1.2.3'), ('_1', '_1'), ('1_', '1_'),
        ('[1, {a: b}]', [1, {'a': 'b'}]), ('? a\n: b', {'a': 'b'}), ('1: a', {1: 'a'}),
    ],
)  # fmt: skip
def test_plain_values_are_read_as_an_engineer_means_them(text: str, value: object) -> None:
    found = parse_yaml(text, 'x.yaml')
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(parse_yaml('.nan', 'x.yaml'))


def test_anchors_aliases_and_merge_keys_are_taken() -> None:
    text = 'base: &arm {lower: -1, upper: 1}\nleft: *arm\nright: {<<: *arm, upper: 2}\n'
    text += 'both: {<<: [{a: 1}, {a: 2, b: 3}]}\n'
    found = parse_yaml(text, 'x.yaml')
    assert found['left'] == {'lower': -1, 'upper': 1}
    assert found['right'] == {'lower': -1, 'upper': 2}, 'what a mapping says itself wins'
    assert found['both'] == {'a': 1, 'b': 3}, 'the first of several wins'


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('name: a\nname: b\n', "x.yaml, line 2: the key 'name' is given twice; keep one."),
        ('a:\n  - {b: 1, c: 2, b: 3}\n', "x.yaml, line 2: the key 'b' is given twice; keep one."),
        ('a: 1\n\tb: 2\n', 'x.yaml, line 2: '),
        ('a:\n\t- b\n', 'x.yaml, line 2: a tab begins a value; indent with spaces.'),
        ('a: [1, 2\n', 'x.yaml, line 2: '),
        ('? [a]\n: b', 'x.yaml, line 1: the key [\'a\'] is no word.'),
        ('a: 1\n<<: 3', 'x.yaml, line 2: << merges 3; it merges mappings only.'),
        ('!!python/object:os.system {}', "the tag '!!python/object:os.system' is not allowed; write plain values"),
        ('a: !!binary "aGk="', "the tag '!!binary' is not allowed"),
        ('!!timestamp 2020-99-99', "the tag '!!timestamp' is not allowed"),
        ('!!set {a}', "the tag '!!set' is not allowed"),
        ('!!int x', 'x.yaml is not valid YAML'),
        ('&a [*a]', 'x.yaml, line 1: this anchor holds an alias to itself; write the values out.'),
        ('a: &a {b: *a}', 'x.yaml, line 1: this anchor holds an alias to itself'),
        ('a: *b', 'x.yaml, line 1: found undefined alias'),
        ('a: b\n---\nc: d\n', 'x.yaml, line 2: but found another document.'),
        ('ok: 1\nbad: \x00', 'x.yaml, line 2: the character U+0000 is not allowed in YAML; remove it.'),
        ('[' * 3000, 'x.yaml nests too deeply to be read; flatten it.'),
        ('- ' * 3000, 'x.yaml nests too deeply to be read; flatten it.'),
    ],
)  # fmt: skip
def test_a_flaw_is_one_sentence_with_file_and_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, 'x.yaml')
    assert said in str(caught.value)
    assert '\n' not in str(caught.value)
    assert str(caught.value).endswith('.')


@pytest.mark.parametrize('merge', [False, True])
def test_a_few_lines_cannot_expand_to_gigabytes(merge: bool) -> None:
    lines = ['a0: &a0 {x: [1, 2, 3, 4, 5, 6, 7, 8, 9]}']
    for level in range(1, 30):
        inner = f'*a{level - 1}'
        lines.append(
            f'a{level}: &a{level} ' + (f'{{<<: [{inner}, {inner}], y: {inner}}}' if merge else f'[{inner}, {inner}]')
        )
    begin = time.monotonic()
    with pytest.raises(ConfigError, match='more than 100000 values, aliases expanded'):
        parse_yaml('\n'.join(lines), 'bomb.yaml')
    assert time.monotonic() - begin < 5.0


def test_the_error_is_of_the_type_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OtherError, match='given twice'):
        parse_yaml('{a: 1, a: 2}', 'x.yaml', OtherError)
    with pytest.raises(OtherError, match=r'none\.yaml cannot be read: there is no such file'):
        read_yaml(tmp_path / 'none.yaml', OtherError)


def test_files_that_are_huge_binary_or_folders_are_refused_by_name(tmp_path: Path) -> None:
    huge = tmp_path / 'huge.yaml'
    huge.write_bytes(b'# ' + b'x' * MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=r'huge\.yaml has 1048578 bytes; a configuration has at most 1048576'):
        read_yaml(huge)
    binary = tmp_path / 'binary.yaml'
    binary.write_bytes(b'a: \xff\xfe')
    with pytest.raises(ConfigError, match=r'binary\.yaml cannot be read: byte 3 is no UTF-8; save it as UTF-8'):
        read_yaml(binary)
    with pytest.raises(ConfigError, match='cannot be read'):
        read_yaml(tmp_path)


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(plain(key) and plain(each) for key, each in value.items())
    return all(map(plain, value)) if isinstance(value, list) else value is None or isinstance(value, str | int | float)


@settings(max_examples=150, deadline=None)
@given(
    st.text(alphabet=st.sampled_from('ab:-[]{}&*<!?|>#"\'\n\t ,.0e~%@\x00\x85é'), max_size=30) | st.text(max_size=20)
)
def test_any_text_is_plain_data_or_one_sentence(text: str) -> None:
    found, message = None, ''
    try:
        found = parse_yaml(text, 'x.yaml')
    except ConfigError as error:
        message = str(error)
    assert plain(found)
    assert '\n' not in message
