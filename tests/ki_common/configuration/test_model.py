"""The base of every configuration: what it takes, what it refuses, and in which words."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from ki_common.configuration.model import Config
from ki_common.errors import ConfigError, KiError


class RoomError(KiError):
    pass


class RoomConfig(Config):
    raises = RoomError


def topic_name(text: str) -> str:
    if ' ' in text:
        raise ValueError('write a ROS topic name')
    return text


class Camera(RoomConfig):
    topic: Annotated[str, AfterValidator(topic_name)]
    """Where its images come from."""
    kind: Literal['scene', 'wrist'] = 'scene'
    width: int | None = Field(default=None, ge=1, le=16384)
    """Of an image, pixels."""
    height: int | None = Field(default=None, ge=1, le=16384)

    @model_validator(mode='after')
    def _both_sizes(self) -> Self:
        if (self.width is None) != (self.height is None):
            raise ValueError(f'width is {self.width} and height {self.height}; give both or neither')
        return self


class Robot(RoomConfig):
    rate_hz: float = Field(gt=0, le=1000)
    """Steps per second, Hz."""
    horizon: int = Field(default=50, ge=1, le=1000)
    timeout_s: float = Field(default=1.0, gt=0)
    workers: int = Field(default=0, ge=0)
    scale: float = 1.0
    dry_run: bool = True
    name: str = 'arm'
    start_speed: float | None = Field(default=None, gt=0)
    cameras: tuple[Camera, ...] = Field(default=(), max_length=3)
    main: Camera = Camera(topic='a')
    second: Camera | None = None
    corner: tuple[float, float] = (0.0, 0.0)
    options: dict[str, bool | float | str] = Field(default_factory=dict)
    mode: Literal['auto'] | float = 'auto'

    @model_validator(mode='after')
    def _names_differ(self) -> Self:
        topics = [each.topic for each in self.cameras]
        if len(set(topics)) < len(topics):
            raise ValueError(f'cameras has the topics {topics}; give each its own')
        return self


def test_lists_become_tuples_and_whole_numbers_pass_for_numbers() -> None:
    robot = Robot.parse({'rate_hz': 20, 'cameras': [{'topic': 'a'}], 'options': {'cubic': True, 'window_s': 1}})
    assert robot.rate_hz == 20.0
    assert type(robot.rate_hz) is float
    assert robot.cameras == (Camera(topic='a'),)
    assert robot.options['cubic'] is True
    assert Robot.parse(robot) is robot


def test_a_file_gives_what_plain_data_gives(tmp_path: Path) -> None:
    file = tmp_path / 'robot.yaml'
    file.write_text('rate_hz: 2e1\ncameras:\n  - {topic: a}\n')
    assert Robot.load(file) == Robot(rate_hz=20.0, cameras=(Camera(topic='a'),))
    file.write_text('rate_hz: 2e1\nrate_hz: 3\n')
    with pytest.raises(RoomError, match="line 2: the key 'rate_hz' is given twice"):
        Robot.load(file)


def test_it_does_not_change_and_a_changed_copy_is_checked() -> None:
    robot = Robot(rate_hz=20.0)
    with pytest.raises(ValueError, match='frozen'):
        robot.rate_hz = 30.0  # type: ignore[misc]
    assert robot.replace(rate_hz=30.0) == Robot(rate_hz=30.0)
    assert robot.rate_hz == 20.0
    with pytest.raises(RoomError, match=r'^Robot: rate_hz is -1\.0; write a number above 0 and at most 1000\.$'):
        robot.replace(rate_hz=-1.0)
    with pytest.raises(RoomError, match="did you mean 'rate_hz'"):
        robot.replace(rate=1.0)


def test_it_goes_to_plain_data_and_back() -> None:
    robot = Robot(rate_hz=20.0, cameras=(Camera(topic='a', width=3, height=4),), options={'x': 0.5})
    plain = robot.to_dict()
    assert plain['cameras'] == [{'topic': 'a', 'kind': 'scene', 'width': 3, 'height': 4}]
    assert Robot.parse(plain) == robot
    assert pickle.loads(pickle.dumps(robot)) == robot


REFUSALS: list[tuple[Any, str]] = [
    ({}, 'r.yaml has no field \'rate_hz\'; add it as a number above 0 and at most 1000 (Steps per second, Hz).'),
    ('text', "r.yaml is 'text'; write a mapping of fields."),
    (None, 'r.yaml has no value; write a mapping of fields.'),
    ({'rate_hz': 0}, 'r.yaml: rate_hz is 0; write a number above 0 and at most 1000.'),
    ({'rate_hz': '1e-3'}, "r.yaml: rate_hz is '1e-3'; write a number above 0 and at most 1000, without quotes."),
    ({'rate_hz': True}, 'r.yaml: rate_hz is True; write a number above 0 and at most 1000.'),
    ({'rate_hz': float('nan')}, 'r.yaml: rate_hz is nan; write a finite number above 0 and at most 1000.'),
    ({'rate_hz': 10**5000}, 'r.yaml: rate_hz is int of too many digits to show; write a number above 0 and'),
    ({'scale': float('inf')}, 'r.yaml: scale is inf; write a finite number, such as 0.5 or 1e-3.'),
    ({'scale': 'big'}, "r.yaml: scale is 'big'; write a number, such as 0.5 or 1e-3."),
    ({'timeout_s': -1}, 'r.yaml: timeout_s is -1; write a number above 0.'),
    ({'horizon': 0}, 'r.yaml: horizon is 0; write a whole number from 1 to 1000.'),
    ({'horizon': 2.0}, 'r.yaml: horizon is 2.0; write a whole number from 1 to 1000.'),
    ({'horizon': True}, 'r.yaml: horizon is True; write a whole number from 1 to 1000.'),
    ({'workers': -3}, 'r.yaml: workers is -3; write a whole number of at least 0.'),
    ({'dry_run': 'yes'}, "r.yaml: dry_run is 'yes'; write true or false, without quotes."),
    ({'dry_run': 1}, 'r.yaml: dry_run is 1; write true or false.'),
    ({'name': 5}, 'r.yaml: name is 5; write a word, in quotes.'),
    ({'name': ['a']}, "r.yaml: name is ['a']; write a word."),
    ({'start_speed': 0.0}, 'r.yaml: start_speed is 0.0; write a number above 0, or leave it out.'),
    ({'hroizon': 5}, "r.yaml has the unknown field 'hroizon'; did you mean 'horizon'? Known are rate_hz, horizon, "),
    ({'colour': 5}, "r.yaml has the unknown field 'colour'; known are rate_hz, horizon, "),
    ({5: 5}, 'r.yaml has the unknown field 5; known are rate_hz, horizon, '),
    ({'cameras': 'head'}, "r.yaml: cameras is 'head'; write a list of at most 3 entries."),
    ({'cameras': ['head']}, "r.yaml: cameras[0] is 'head'; write a mapping of fields."),
    ({'cameras': [{}]}, "r.yaml: cameras[0] has no field 'topic'; add it as a word (Where its images come from)."),
    ({'cameras': [{'topic': 'a b'}]}, "r.yaml: cameras[0].topic is 'a b'; write a ROS topic name."),
    ({'cameras': [{'topic': 'a', 'fps': 3}]}, "r.yaml: cameras[0] has the unknown field 'fps'; known are topic, "),
    ({'cameras': [{'topic': 'a', 'kind': 'scen'}]}, "r.yaml: cameras[0].kind is 'scen'; write one of scene, wrist."),
    ({'cameras': [{'topic': 'a', 'kind': None}]}, 'r.yaml: cameras[0].kind has no value; write one of scene, '),
    ({'cameras': [{'topic': 'a', 'width': 3}]}, 'r.yaml: cameras[0].width is 3 and height None; give both or neither.'),
    ({'cameras': [{'topic': 'a'}] * 2}, "r.yaml: cameras has the topics ['a', 'a']; give each its own."),
    ({'cameras': [{'topic': 'a'}] * 4}, 'write a list of at most 3 entries.'),
    ({'main': {'topic': 5}}, 'r.yaml: main.topic is 5; write a word, in quotes.'),
    ({'main': None}, 'r.yaml: main has no value; write a mapping of fields, or leave it out.'),
    ({'rate_hz': None}, 'r.yaml: rate_hz has no value; write a number above 0 and at most 1000.'),
    ({'main': 3}, 'r.yaml: main is 3; write a mapping of fields.'),
    ({'second': {'topc': 'a'}}, "r.yaml: second has the unknown field 'topc'; did you mean 'topic'? Known are "),
    ({'second': {'topic': 'a', 'width': 3}}, 'r.yaml: second.width is 3 and height None; give both or neither.'),
    ({'second': 3}, 'r.yaml: second is 3; write a mapping of fields, or leave it out.'),
    ({'corner': [1]}, 'r.yaml: corner is [1]; write a list of 2 entries.'),
    ({'corner': [1, 2, 3]}, 'r.yaml: corner is [1, 2, 3]; write a list of 2 entries.'),
    ({'corner': [1, None]}, 'r.yaml: corner[1] has no value; write a number, such as 0.5 or 1e-3.'),
    ({'options': {'x': None}}, 'r.yaml: options.x has no value; write true or false or a number'),
    ({'options': {5: 1.0}}, 'r.yaml: options has the key 5; write a word.'),
    ({'options': 3}, 'r.yaml: options is 3; write a mapping.'),
    ({'mode': 'fast'}, "r.yaml: mode is 'fast'; write auto or a number, such as 0.5 or 1e-3."),
    ({'horizon': 0, 'workers': -1}, 'whole number from 1 to 1000. Also wrong: workers.'),
]  # fmt: skip


@pytest.mark.parametrize(('data', 'said'), REFUSALS)
def test_a_refusal_is_one_sentence_with_source_field_value_and_what_to_write(data: Any, said: str) -> None:
    if isinstance(data, dict) and data:
        data = {'rate_hz': 20.0} | data
    with pytest.raises(RoomError) as caught:
        Robot.parse(data, 'r.yaml')
    message = str(caught.value)
    assert said in message
    assert '\n' not in message
    assert message.endswith('.')
    assert caught.value.__cause__ is None


def test_a_misspelt_field_is_not_also_told_as_missing() -> None:
    with pytest.raises(RoomError) as caught:
        Robot.parse({'rate_hzz': 5.0}, 'r.yaml')
    assert "did you mean 'rate_hz'" in str(caught.value)
    assert 'Also wrong' not in str(caught.value)


def test_a_room_without_an_error_of_its_own_raises_the_common_one() -> None:
    class Plain(Config):
        x: int = 0

    with pytest.raises(ConfigError, match='Plain: x is'):
        Plain(x='a')  # type: ignore[arg-type]


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(Robot.model_fields)), TREES)
def test_any_tree_in_any_field_is_sound_or_one_sentence(name: str, tree: object) -> None:
    message = 'r.yaml'
    try:
        Robot.parse({'rate_hz': 20.0, name: tree}, 'r.yaml')
    except RoomError as error:
        message = str(error)
    assert message.startswith('r.yaml')
    assert '\n' not in message
    assert len(message) < 1000
