"""The reference of configuration, from the models that read it: parameters, launch arguments, contracts, runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tables import code, table

from ki.stack.node_parameters import settings_models
from ki.stack.up_file import UpFile
from ki_common.configuration.model import Config
from ki_common.configuration.schema import json_schema
from ki_common.node_settings import Change
from ki_policy_node.common.launch_arguments import launch_arguments
from ki_robot.contract.contract import Contract
from training.train.config import Run

WHEN = {
    Change.LIVE: 'any time',
    Change.UNCONFIGURED: 'while unconfigured',
    Change.READ_ONLY: 'at the start',
}
LAUNCH_FILES = {
    'policy': 'The policy node and the chunk executor of one robot. `ki up` takes the same as options.',
    'record': 'The recorder.',
    'sim': 'The simulated robot, with the policy node and the chunk executor.',
    'replay': 'A bag played to the policy node and the chunk executor.',
}


def parameters_page() -> str:
    """Every parameter of every node."""
    said = [
        '# Parameters',
        '',
        'A misspelt parameter, a wrong type or a value out of range is refused, in one sentence that says what to '
        'write. Set them in a parameters file (`config/node/policy.yaml` is one), as launch arguments, or with '
        '`ros2 param set`.',
        '',
    ]
    for node, settings in settings_models().items():
        rows = [
            (
                code(spec.name),
                spec.description,
                spec.type_name + (f' [{spec.unit}]' if spec.unit else ''),
                spec.range,
                code(_shown(spec.default)),
                WHEN[spec.change],
            )
            for spec in settings.specs().values()
        ]
        said += [f'## {node}', '', table(('parameter', '', 'type', 'values', 'default', 'may be set'), rows)]
    return '\n'.join(said)


def launch_page() -> str:
    """Every argument of every launch file."""
    said = ['# Launch files', '']
    for file, about in LAUNCH_FILES.items():
        rows = [
            (
                code(each.name),
                '**required**' if each.default is None else code(_shown(each.default)),
                ', '.join(each.choices),
                each.description,
            )
            for each in launch_arguments(file).values()
        ]
        said += [f'## {file}.launch.py', '', about, '', table(('argument', 'default', 'values', ''), rows)]
    return '\n'.join(said)


def contract_page() -> str:
    """Every field of a robot's contract."""
    head = (
        'A contract describes one robot: `config/robots/NAME.yaml`. Every field is checked; an unknown one is refused. '
        'The tutorial [Your first arm](../tutorials/first-arm.md) writes one.'
    )
    return f'# Contract\n\n{head}\n\n{model_sections(Contract)}'


def run_page() -> str:
    """Every field of the YAML file of a training run."""
    head = (
        'A run is one YAML file: `ki train FILE.yaml`; examples are in `config/train/`. Every field is checked before '
        'anything is read; an unknown one is refused. The tutorial [Train from your bags]'
        '(../tutorials/train-from-bags.md) goes through one.'
    )
    return f'# Training run\n\n{head}\n\n{model_sections(Run)}'


def up_page() -> str:
    """Every field of a file of `ki up`."""
    head = '`ki up FILE.yaml` starts the nodes that a file names; examples are in `config/node/`.'
    return f'# Files of ki up\n\n{head}\n\n{model_sections(UpFile)}'


def model_sections(model: type[Config]) -> str:
    """A table of fields of a model, and of each model within it, in the order of first use."""
    schema = json_schema(model)
    parts, waiting, seen = schema.get('$defs', {}), [(model.__name__, schema)], {model.__name__}
    said = []
    while waiting:
        name, part = waiting.pop(0)
        about = _text(part.get('description', ''))
        said += [
            f'## {name}',
            '',
            *([about, ''] if about else []),
            table(('field', 'type', 'default', ''), _rows(part, parts)),
        ]
        for used in _references(part.get('properties', {})):
            if used not in seen and 'properties' in parts[used]:
                seen.add(used)
                waiting.append((used, parts[used]))
    return '\n'.join(said)


def _rows(part: Mapping[str, Any], parts: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    required = part.get('required', ())
    return [
        (
            code(name),
            _type(field),
            '**required**' if name in required else _default(field.get('default')),
            _text(_about(field, parts)),
        )
        for name, field in part['properties'].items()
    ]


def _about(field: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """What a field is for; pydantic leaves that out where its model says the same."""
    model = parts.get(field.get('$ref', '').rpartition('/')[2], {})
    return str(field.get('description') or model.get('description', ''))


def _type(field: Mapping[str, Any]) -> str:
    """A field's type and bounds in words."""
    if '$ref' in field:
        name = field['$ref'].rpartition('/')[2]
        return f'[{name}](#{name.lower()})'
    if 'allOf' in field:
        return ', '.join(_type(each) for each in field['allOf'])
    for several in ('anyOf', 'oneOf'):
        if several in field:
            return ' or '.join(_type(each) for each in field[several] if each.get('type') != 'null')
    if 'enum' in field or 'const' in field:
        return ', '.join(code(each) for each in field.get('enum', [field.get('const')]))
    if field.get('type') == 'array':
        return f'list of {_type(field["items"])}' if 'items' in field else 'list'
    if field.get('type') == 'object':
        inner = field.get('additionalProperties')
        return f'mapping to {_type(inner)}' if isinstance(inner, Mapping) else 'mapping'
    return f'{field.get("type", "any")}{_bounds(field)}'


def _bounds(field: Mapping[str, Any]) -> str:
    words = {'exclusiveMinimum': '> ', 'minimum': '≥ ', 'exclusiveMaximum': '< ', 'maximum': '≤ '}
    bounds = [f'{sign}{field[key]:.10g}' for key, sign in words.items() if key in field]
    return f', {", ".join(bounds)}' if bounds else ''


def _references(fields: object) -> list[str]:
    """Names of the models that a schema refers to, in order."""
    if isinstance(fields, Mapping):
        own = [fields['$ref'].rpartition('/')[2]] if '$ref' in fields else []
        return own + [name for value in fields.values() for name in _references(value)]
    return [name for value in fields for name in _references(value)] if isinstance(fields, list) else []


def _default(value: object) -> str:
    if value is None:
        return 'left out'
    if isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(each, Mapping) for each in value)):
        return 'its defaults' if value else 'none'
    return code(_shown(value))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value or "''"
    if isinstance(value, list | tuple):
        return '[' + ', '.join(_shown(each) for each in value) + ']'
    return f'{value:g}' if isinstance(value, float) else str(value)


def _text(description: str) -> str:
    return ' '.join(description.split())
