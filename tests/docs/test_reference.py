"""The generated pages: complete, from the code, and with links that lead somewhere."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from ki.stack.node_parameters import settings_models

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of tools/docs by name; they are programs of mkdocs and in no package."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / 'tools' / 'docs'))
    names = ('api', 'commands', 'messages', 'repository_pages', 'settings', 'interfaces')
    yield {name: importlib.import_module(name) for name in names}
    for name in (*names, 'tables'):
        if name not in before:
            sys.modules.pop(name, None)


def test_every_field_of_every_message_has_a_comment(pages: dict[str, ModuleType]) -> None:
    parsed = pages['messages'].parse(
        '# What it is.\n\nuint8 A = 0   # first\n\n# Above.\nstring[] names\nint32 n  # beside\n'
    )
    assert parsed.about == 'What it is.'
    assert parsed.lines == [
        ('uint8', 'A', '0', 'first'),
        ('string[]', 'names', '', 'Above.'),
        ('int32', 'n', '', 'beside'),
    ]
    text = pages['messages'].page()
    for path in (ROOT / 'ki_msgs').glob('*/*.*'):
        assert f'### {path.stem}\n' in text


def test_every_parameter_and_launch_argument_is_listed(pages: dict[str, ModuleType]) -> None:
    text = pages['settings'].parameters_page()
    for node, settings in settings_models().items():
        assert f'## {node}\n' in text
        for name, spec in settings.specs().items():
            assert f'| `{name}` | {spec.description[:20]}' in text
    assert '| `bag` | **required** |' in pages['settings'].launch_page()


def test_every_field_of_a_contract_is_listed_with_its_bounds(pages: dict[str, ModuleType]) -> None:
    from ki_robot.contract.contract import Contract
    from ki_robot.contract.parts import ActionColumn, Camera, Limits, Output, StateColumn, StateStream

    text = pages['settings'].contract_page()
    for model in (Contract, Camera, StateStream, StateColumn, ActionColumn, Limits, Output):
        assert f'## {model.__name__}\n' in text
        for name in model.model_fields:
            assert f'| `{name}` |' in text
    assert '| `rate_hz` | number, > 0, ≤ 1000 | **required** |' in text


def test_every_field_of_a_run_and_of_a_file_of_ki_up_is_listed(pages: dict[str, ModuleType]) -> None:
    from ki.stack.up_file import UpFile, UpNode
    from training.train.config import Augment, Data, Embodiment, Run, Simulate, Stage, Tokens

    for text, models in (
        (pages['settings'].run_page(), (Run, Data, Embodiment, Simulate, Tokens, Augment, Stage)),
        (pages['settings'].up_page(), (UpFile, UpNode)),
    ):
        for model in models:
            assert f'## {model.__name__}\n' in text
            for name in model.model_fields:
                assert f'| `{name}` |' in text
        rows = [line for line in text.splitlines() if line.startswith('| `')]
        assert not [row for row in rows if row.endswith('|  |')], 'a field without a word'
    assert '| `final_rate` | number, ≥ 0, ≤ 1 | `0.1` |' in pages['settings'].run_page()


def test_every_command_is_listed(pages: dict[str, ModuleType]) -> None:
    text = pages['commands'].page()
    for path in (ROOT / 'ki' / 'commands').glob('[a-z]*.py'):
        assert f'## ki {path.stem}\n' in text
    assert '### ki bag record\n' in text
    assert '`--compression`' in text


@pytest.mark.ros
def test_the_nodes_say_what_they_publish_and_serve(
    pages: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'OFF')
    text = pages['interfaces'].page()
    assert '| `~/status` | `ki_msgs/msg/PolicyStatus` | latched |' in text
    assert '| `~/run` | `ki_msgs/action/RunPolicy` |' in text
    assert '| `~/enable` | `std_srvs/srv/SetBool` |' in text


def test_links_of_a_shown_file_lead_to_pages_or_name_the_file(pages: dict[str, ModuleType]) -> None:
    link = pages['repository_pages']._link
    assert link('Safety', 'SAFETY.md#states', 'ARCHITECTURE.md') == '[Safety](safety.md#states)'
    assert link('the test', 'tests/test_import_directions.py', 'ARCHITECTURE.md') == (
        'the test (`tests/test_import_directions.py`)'
    )
    assert link('recipes', '../recipes.md', 'docs/policy/README.md') == '[recipes](../recipes.md)'
    assert link('paper', 'https://arxiv.org/abs/2505.23705', 'README.md').endswith('2505.23705)')


def test_every_module_is_on_a_page_of_the_python_api(pages: dict[str, ModuleType]) -> None:
    made = pages['api'].pages()
    assert '::: ki_robot.contract.contract' in made['reference/python/ki_robot.md']
    assert len(made) == len(pages['api'].ROOMS)
