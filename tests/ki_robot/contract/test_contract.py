"""The contract: what is read, what is refused and how it is said, hashes and round trips."""

from __future__ import annotations

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_common.configuration.yaml_reader import parse_yaml
from ki_robot.contract.contract import Contract, load_contract, robot_names
from ki_robot.errors import RobotError

ROOT = Path(__file__).resolve().parents[3]
ROBOTS = ('arm_single', 'bimanual_static', 'bimanual_mobile')


def plain(name: str = 'bimanual_mobile') -> dict[str, Any]:
    return copy.deepcopy(load_contract(name).to_dict())  # type: ignore[arg-type]


@pytest.mark.parametrize('name', ROBOTS)
def test_the_three_robots_load_and_round_trip(name: str, tmp_path: Path) -> None:
    contract = load_contract(name)
    assert contract.name == name
    assert name in robot_names()
    file = tmp_path / 'copy.yaml'
    file.write_text(yaml.safe_dump(contract.to_dict(), sort_keys=False))
    assert load_contract(file) == contract
    assert load_contract(file).hash == contract.hash


def test_the_mobile_robot_has_the_columns_that_the_simulator_serves() -> None:
    contract = load_contract('bimanual_mobile')
    arms = [
        f'{side}_{part}/position'
        for side in ('left', 'right')
        for part in [*(f'joint{i}' for i in range(1, 7)), 'gripper']
    ]
    base = ['base/linear/x/velocity', 'base/linear/y/velocity', 'base/angular/z/velocity']
    assert list(contract.action_names) == arms + base == list(contract.state_names)
    assert contract.camera_names == ('head', 'left_wrist', 'right_wrist')
    assert contract.step_ns == 50_000_000
    assert contract.horizon == 50
    assert [output.kind for output in contract.outputs] == [
        'joint_trajectory', 'forward_command', 'joint_trajectory', 'forward_command', 'twist_stamped',
    ]  # fmt: skip


def test_the_hash_follows_the_content_and_not_the_layout() -> None:
    data = plain()
    shuffled = dict(reversed(data.items()))
    assert Contract.parse(shuffled).hash == Contract.parse(data).hash
    data['rate_hz'] = 20
    assert Contract.parse(data).hash == load_contract('bimanual_mobile').hash
    data['actions'][3]['limits']['upper'] = 3.04
    assert Contract.parse(data).hash != load_contract('bimanual_mobile').hash


# Bundles, indexes and exports on disk hold these: they must never change while the file does not.
HASHES = {
    'arm_single': '8a513244d51b2b96910ac7377535d4d9b3205781660dda8f58f868aa833032f2',
    'bimanual_mobile': '2f895b1072d0acd1f25bcd282f59e64f26311b7e9842ea2306149bc2ca5962ff',
    'bimanual_static': '2b36a3335f35b9204b55727b82b10f4b00e499452bc8ae3db731f289385529a7',
    'g1_upper_body': '7c9a6975a49abbe2138b778f9464cdf7a2d9232cbb55a519cd6e09ae25333d10',
}


@pytest.mark.parametrize(('name', 'known'), HASHES.items())
def test_the_hash_of_a_shipped_contract_stays_what_bundles_on_disk_hold(name: str, known: str) -> None:
    assert load_contract(name).hash == known


def test_the_shipped_bundle_holds_the_contract_of_the_simulated_robot() -> None:
    assert load_contract(ROOT / 'bundles/demo/contract.yaml').hash == load_contract('bimanual_demo').hash


class LaterContract(Contract):
    """A contract of a later version, with one optional field more."""

    reach: float | None = None
    tool: str = ''


def test_a_new_optional_field_changes_no_hash_until_it_is_used() -> None:
    later = LaterContract.parse(plain())
    assert later.hash == HASHES['bimanual_mobile']
    assert later.replace(reach=0.5).hash != later.hash
    assert later.replace(tool='hook').to_dict()['tool'] == 'hook'


def test_what_only_the_executor_goes_by_changes_no_hash_and_is_written() -> None:
    contract = load_contract('bimanual_mobile')
    other = contract.replace(on_far_start='approach', start_speed=0.2)
    assert other.hash == contract.hash
    assert Contract.parse(other.to_dict()) == other
    gripper = next(output for output in contract.outputs if output.name == 'left_gripper')
    assert gripper.role == 'gripper'


def test_only_an_effort_can_be_kept_in_a_hold() -> None:
    data = plain()
    data['outputs'][0]['on_hold'] = 'keep_force'
    with pytest.raises(RobotError, match=r'on_hold .left_arm. is keep_force for position; only an effort is a force'):
        Contract.parse(data)


def test_minus_zero_hashes_as_zero() -> None:
    data = plain()
    assert data['actions'][6]['limits']['lower'] == 0.0
    data['actions'][6]['limits']['lower'] = -0.0
    assert Contract.parse(data).hash == HASHES['bimanual_mobile']


def edit(path: str, value: object) -> Any:
    """A change of plain data: `path` as in messages, `value` to put there; `...` removes the field."""

    def change(data: dict[str, Any]) -> None:
        keys = [int(key) if key.isdigit() else key for key in path.split('.')]
        target: Any = data
        for key in keys[:-1]:
            target = target[key]
        if value is ...:
            del target[keys[-1]]
        else:
            target[keys[-1]] = value

    return change


def again(label: str) -> Any:
    return lambda data: data[label].append(copy.deepcopy(data[label][0]))


REFUSALS = [
    (edit('colour', 'red'), "unknown field 'colour'"),
    (edit('cameras.1.fps', 30), "cameras[1] has the unknown field 'fps'"),
    (edit('rate_hz', 0.0), 'rate_hz is 0.0'),
    (edit('rate_hz', '1e-3'), "rate_hz is '1e-3'; write a number above 0 and at most 1000, without quotes"),
    (edit('rate_hz', float('nan')), 'rate_hz is nan'),
    (edit('rate_hz', True), 'rate_hz is True'),
    (edit('rate_hz', 16**9000), 'rate_hz is int of too many digits to show'),
    (edit('outputs.4.frame_id', 'a b'), "frame_id is 'a b'"),
    (edit('horizon', ...), "no field 'horizon'"),
    (edit('horizon', 0), 'horizon is 0'),
    (edit('cameras', []), 'cameras is []; write a list of 1 to 512 entries'),
    (edit('cameras', 'head'), "cameras is 'head'; write a list"),
    (edit('cameras.0', 'head'), "cameras[0] is 'head'; write a mapping"),
    (edit('cameras.0.max_age_s', -1.0), 'cameras[0].max_age_s is -1.0'),
    (edit('cameras.0.crop', [0.5, 0.0, 0.6, 1.0]), 'cameras[0].crop is [0.5, 0.0, 0.6, 1.0]; write left, top, width'),
    (edit('cameras.0.crop', [0.5, 0.0, 0.0, 1.0]), 'cameras[0].crop is [0.5, 0.0, 0.0, 1.0]'),
    (edit('cameras.0.transport', 'h264'), "transport is 'h264'; write one of raw, compressed, video, ffmpeg"),
    (edit('cameras.0.topic', 'no spaces'), "cameras[0].topic is 'no spaces'"),
    (edit('cameras.0.width', 640), 'only one of width and height'),
    (edit('cameras.0.name', 'joint_states'), "'joint_states' names both a camera and a state stream"),
    (edit('cameras.1.topic', 'joint_states'), "the topic 'joint_states' feeds two streams"),
    (edit('state_streams.1.topic', 'joint_states'), "the topic 'joint_states' feeds two streams"),
    (edit('outputs.0.max_command_age_s', 0.0), 'max_command_age_s is 0.0'),
    (lambda data: data['outputs'][0].update(commands='goals', max_command_age_s=1.0), 'its commands are goals'),
    (edit('state.2.unit', 'deg'), "state[2].unit is 'deg'; write one of rad"),
    (edit('state.2.unit', 'm/s'), "state[2].unit is 'm/s'; a position is in rad or m"),
    (edit('state.2.source', 'imu'), "state[2].source is 'imu'"),
    (edit('state.2.source', 'odom'), 'an odometry stream gives columns that end in'),
    (edit('state.0.name', 'left_joint1/torque'), "whose interface 'torque' is unknown"),
    (edit('actions.0.limits', ...), 'has no lower; a position command needs lower, upper, velocity'),
    (edit('actions.0.limits.velocity', ...), 'has no velocity'),
    (edit('actions.14.limits.velocity', ...), 'a velocity command needs velocity'),
    (edit('actions.0.limits.velocity', 0.0), 'limits.velocity is 0.0'),
    (edit('actions.0.limits.lower', 9.0), 'limits.lower is 9.0, not below upper 2.4'),
    (edit('actions.0.limits.lower', 'low'), "limits.lower is 'low'"),
    (edit('actions.0.limits.snap', 1.0), "unknown field 'snap'"),
    (edit('actions.0.limits.jerk', 0.0), 'limits.jerk is 0.0'),
    (edit('actions.0.name', 'elbow/position'), 'no state column has that name'),
    (edit('actions.0.unit', 'm'), "but the state column left_joint1/position is in 'rad'"),
    (edit('outputs.0.columns.0', 'elbow/position'), "names 'elbow/position', which is no action column"),
    (edit('outputs.0.columns.0', 7), 'outputs[0].columns[0] is 7; write a word'),
    (edit('outputs.0.columns', []), 'outputs[0].columns is []; write a list of at least 1 entry'),
    (edit('outputs.1.columns', ['base/linear/x/velocity']), 'controller without a timeout'),
    (edit('outputs.4.columns', ['left_gripper/position']), 'a twist takes'),
    (edit('outputs.4.options', {'window_s': 0.1}), 'twist_stamped knows no option'),
    (edit('outputs.0.options.window_s', 2.0), 'window_s is 2.0; write a number above 0 and at most 0.3'),
    (edit('outputs.0.options.interpolation', 'spline'), 'write one of linear, cubic'),
    (edit('outputs.0.options.window_s', 'long'), 'write a number'),
    (lambda data: data['outputs'].pop(), "'base/linear/x/velocity' goes to no output"),
    (lambda data: data['outputs'][1]['columns'].append('left_joint1/position'), 'goes to two outputs'),
    (again('cameras'), "cameras names 'head' twice"),
    (again('state'), "state names 'left_joint1/position' twice"),
    (again('actions'), "actions names 'left_joint1/position' twice"),
    (edit('state_streams.1.name', 'wheel'), 'state_streams[1] (wheel) feeds no state column'),
]  # fmt: skip


@pytest.mark.parametrize(('change', 'said'), REFUSALS)
def test_a_broken_rule_is_one_sentence_with_file_field_and_value(change: Any, said: str) -> None:
    data = plain()
    change(data)
    with pytest.raises(RobotError) as caught:
        Contract.parse(data, 'my_robot.yaml')
    message = str(caught.value)
    assert said in message
    assert message.startswith('my_robot.yaml')
    assert '\n' not in message
    assert message.endswith('.')


def test_drivers_may_publish_their_joints_on_one_topic() -> None:
    data = plain()
    data['state_streams'].append({**data['state_streams'][0], 'name': 'right'})
    for column in data['state']:
        if column['name'].startswith('right'):
            column['source'] = 'right'
    assert [stream.topic for stream in Contract.parse(data).state_streams] == ['joint_states', 'odom', 'joint_states']


def test_a_contract_built_in_code_is_checked_too() -> None:
    contract = load_contract('arm_single')
    with pytest.raises(RobotError, match='rate_hz is -1'):
        contract.replace(rate_hz=-1.0)


def test_an_unknown_robot_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RobotError, match=r"No robot is called 'r2d2'; known are .*arm_single"):
        load_contract('r2d2')


def test_a_missing_or_huge_or_binary_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RobotError, match=r'none\.yaml cannot be read'):
        load_contract(tmp_path / 'none.yaml')
    huge = tmp_path / 'huge.yaml'
    huge.write_bytes(b'# ' + b'x' * (1 << 20))
    with pytest.raises(RobotError, match='at most 1048576'):
        load_contract(huge)
    binary = tmp_path / 'binary.yaml'
    binary.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(RobotError, match='cannot be read'):
        load_contract(binary)


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / 'robot.yaml'
    file.write_text('name: a\nname: b\n')
    with pytest.raises(RobotError, match=r"robot\.yaml, line 2: the key 'name' is given twice; keep one"):
        load_contract(file)


def test_a_policy_for_another_robot_is_told_field_by_field() -> None:
    mobile = load_contract('bimanual_mobile')
    assert mobile.mismatches(mobile) == []
    other = load_contract('arm_single')
    said = '\n'.join(mobile.mismatches(other))
    assert 'rate_hz: the policy has 20.0, the robot 15.0' in said
    assert 'cameras (name, in order)' in said
    assert 'actions (name, in order)' in said
    data = plain()
    data['actions'][0]['limits']['upper'] = 1.0
    data['cameras'][0]['topic'] = 'elsewhere'
    assert mobile.mismatches(Contract.parse(data)) == []


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4) | st.dates()
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=8
)


@settings(max_examples=60, deadline=None)
@given(TREES, st.randoms(use_true_random=False))
def test_any_tree_in_any_field_is_a_contract_or_a_robot_error(tree: object, chance: random.Random) -> None:
    data: Any = plain()
    target, key = data, chance.choice(sorted(data))
    while isinstance(target[key], (dict, list)) and target[key] and chance.random() < 0.8:
        target = target[key]
        key = chance.choice(sorted(target)) if isinstance(target, dict) else chance.randrange(len(target))
    target[key] = tree
    with contextlib.suppress(RobotError):
        assert len(Contract.parse(data).hash) == 64


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 9000),
    st.binary(min_size=0, max_size=6) | st.sampled_from([b'&a [*a]', b'<<: 1', b'!!python/x', b'{', b'2020-13-41']),
)
def test_any_bytes_inside_the_file_give_a_contract_or_a_robot_error(at: int, junk: bytes) -> None:
    raw = Path(__file__).resolve().parents[3].joinpath('config/robots/arm_single.yaml').read_bytes()
    at %= len(raw)
    text = (raw[:at] + junk + raw[at + len(junk) :]).decode('utf-8', errors='replace')
    with contextlib.suppress(RobotError):
        Contract.parse(parse_yaml(text, 'fuzz.yaml', RobotError), 'fuzz.yaml')


@pytest.mark.parametrize(
    'text',
    [
        '[' * 1500,
        '- ' * 1500,
        '&a [*a]',
        '!!python/object:os.system {}',
        '? [a]\n: b',
        '<<: 3',
        '\x00',
        '!!timestamp 2020-99-99',
        '!!int x',
        '!!binary "é"',
    ],
)
def test_hostile_yaml_is_refused(text: str) -> None:
    with pytest.raises(RobotError):
        Contract.parse(parse_yaml(text, 'hostile.yaml', RobotError), 'hostile.yaml')
