"""Types of fields that several configurations have."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from ki_common.configuration.model import Config
from ki_common.configuration.schema import json_schema
from ki_common.configuration.types import ChangesOf, Matches, OneOf, Words
from ki_common.errors import ConfigError


class Layer(Config):
    width: int = Field(ge=1)
    """Channels."""
    depth: int = Field(default=2, ge=1)


class Net(Config):
    name: str
    layer: Layer


class Plan(Config):
    topic: Annotated[str, Matches(r'[a-z]+(/[a-z]+)*', 'write a ROS topic name', longest=10)] = 'a'
    """Where it goes,
    and in which words.

    A second paragraph."""
    recipe: Annotated[str, OneOf({'ours': 1, 'theirs': 2})] = 'ours'
    files: Words = ()
    net: Annotated[dict[str, Any], ChangesOf(Net)] = Field(default_factory=dict)


class Whole(Config):
    plan: Plan = Plan()


def test_what_fits_is_taken() -> None:
    plan = Plan.parse({'topic': 'a/b', 'recipe': 'theirs', 'files': 'one', 'net': {'layer': {'depth': 3}}})
    assert plan.files == ('one',)
    assert plan.net == {'layer': {'depth': 3}}, 'only what was given'
    assert Plan.parse({'files': ['a', 'b']}).files == ('a', 'b')
    assert Plan.parse(plan.to_dict()) == plan


@pytest.mark.parametrize(
    ('data', 'said'),
    [
        ({'topic': 'A'}, "p.yaml: topic is 'A'; write a ROS topic name."),
        ({'topic': 'a\n'}, "p.yaml: topic is 'a\\n'; write a ROS topic name."),
        ({'topic': 'abcdefghijkl'}, 'write a ROS topic name.'),
        ({'recipe': 'our'}, "p.yaml: recipe is 'our'; write one of ours, theirs."),
        ({'recipe': ['ours']}, "p.yaml: recipe is ['ours']; write one of ours, theirs."),
        ({'files': 3}, 'p.yaml: files is 3; write a list or a word.'),
        ({'files': ['a', 3]}, 'p.yaml: files[1] is 3; write a word, in quotes.'),
        ({'net': {'layr': {}}}, "p.yaml: net has the unknown field 'layr'; did you mean 'layer'?"),
        ({'net': {'layer': {'depth': 0}}}, 'p.yaml: net.layer.depth is 0; write a whole number of at least 1.'),
        ({'net': 3}, 'p.yaml: net is 3; write a mapping of fields.'),
    ],
)
def test_what_does_not_fit_is_refused_in_words(data: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Plan.parse(data, 'p.yaml')
    assert said in str(caught.value)


def test_an_editor_is_told_the_same() -> None:
    schema = json_schema(Plan)
    fields = schema['properties']
    assert fields['topic'] == {
        'type': 'string',
        'pattern': '^([a-z]+(/[a-z]+)*)$',
        'maxLength': 10,
        'default': 'a',
        'description': 'Where it goes, and in which words.\n\nA second paragraph.',
    }
    assert fields['recipe']['enum'] == ['ours', 'theirs']
    assert [each['type'] for each in fields['files']['anyOf']] == ['array', 'string']
    assert 'default' not in json_schema(Whole)['properties']['plan'], 'its fields say their own'
    layer = schema['$defs']['LayerChanges']
    assert layer['properties']['width'] == {'type': 'integer', 'minimum': 1, 'description': 'Channels.'}
    assert 'required' not in layer
    assert layer['additionalProperties'] is False
