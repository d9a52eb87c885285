"""config/schema/: up to date, named by the YAML files that ship, and right about them."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ki_common.configuration.yaml_reader import read_yaml

ROOT = Path(__file__).resolve().parents[2]
NAMED = {'robots': 'contract.json', 'train': 'run.json', 'node': 'up.json'}
SHIPPED = [path for folder in NAMED for path in sorted((ROOT / 'config' / folder).glob('*.yaml'))]
PARAMETERS = {'policy.yaml', 'recorder.yaml', 'sim_robot.yaml'}  # ROS 2 files of parameters


@pytest.fixture(scope='module')
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location('write_schemas', ROOT / 'tools' / 'write_schemas.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_schemas_are_up_to_date(tool: ModuleType) -> None:
    on_disk = {path.name: path.read_text(encoding='utf-8') for path in (ROOT / 'config' / 'schema').iterdir()}
    assert on_disk == tool.schemas(), 'call `make schema` and commit what it writes'


def misfits(value: Any, wanted: dict[str, Any], schema: dict[str, Any], where: str = '') -> list[str]:
    """Where plain data break a JSON Schema, for the keywords that ours use."""
    if '$ref' in wanted:
        wanted = {
            **schema['$defs'][wanted['$ref'].rpartition('/')[2]],
            **{k: v for k, v in wanted.items() if k != '$ref'},
        }
    if 'anyOf' in wanted:
        found = [misfits(value, option, schema, where) for option in wanted['anyOf']]
        return [] if not all(found) else found[0]
    kinds = {
        'object': dict, 'array': list, 'string': str, 'boolean': bool, 'null': type(None), 'integer': int,
        'number': (int, float),
    }  # fmt: skip
    if not isinstance(value, kinds[wanted['type']]) or (isinstance(value, bool) and wanted['type'] != 'boolean'):
        return [f'{where}: {value!r} is no {wanted["type"]}']
    wrong = [f'{where}: {value!r} is not in enum'] if value not in wanted.get('enum', [value]) else []
    if 'pattern' in wanted and not re.search(wanted['pattern'], value):
        wrong.append(f'{where}: {value!r} does not match')
    if isinstance(value, int | float) and value < wanted.get('minimum', value):
        wrong.append(f'{where}: {value} is too small')
    if isinstance(value, list):
        places = wanted.get('prefixItems', [])
        for index, each in enumerate(value):
            item = places[index] if index < len(places) else wanted['items']
            wrong += misfits(each, item, schema, f'{where}[{index}]')
    if isinstance(value, dict):
        wrong += [f'{where}: lacks {name}' for name in wanted.get('required', []) if name not in value]
        for name, each in value.items():
            inner = wanted.get('properties', {}).get(name, wanted.get('additionalProperties', True))
            if inner is False:
                wrong.append(f'{where}.{name} is unknown')
            elif isinstance(inner, dict):
                wrong += misfits(each, inner, schema, f'{where}.{name}')
    return wrong


@pytest.mark.parametrize(
    'path',
    [path for path in SHIPPED if path.name not in PARAMETERS],
    ids=lambda path: f'{path.parent.name}/{path.stem}',
)
def test_a_shipped_file_names_its_schema_and_fits_it(path: Path) -> None:
    line = path.read_text(encoding='utf-8').splitlines()[0]
    assert line == f'# yaml-language-server: $schema=../schema/{NAMED[path.parent.name]}'
    schema = json.loads((path.parent / line.partition('$schema=')[2]).read_text(encoding='utf-8'))
    data = read_yaml(path)
    assert misfits(data, schema, schema) == []
    assert misfits({**data, 'colour': 'red'}, schema, schema) == ['.colour is unknown']


def fields(part: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every field of every table in a schema, with its name."""
    if isinstance(part, list):
        return [found for each in part for found in fields(each)]
    if not isinstance(part, dict):
        return []
    found = list(part['properties'].items()) if isinstance(part.get('properties'), dict) else []
    return found + [each for inner in part.values() for each in fields(inner)]


def test_every_field_says_what_it_is(tool: ModuleType) -> None:
    silent = {
        (file, name)
        for file, text in tool.schemas().items()
        for name, about in fields(json.loads(text))
        if not about.get('description')
    }
    assert not silent
