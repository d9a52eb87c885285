"""A contract drafted from a robot's own files: URDF, controllers of ros2_control, joint limits.

What the files say is written; what they do not say is written as the nearest sound value, with a comment that asks for
it. The draft is a whole contract: it loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ki_common.configuration.yaml_reader import parse_yaml
from ki_common.errors import shown
from ki_robot.contract.contract import Contract
from ki_robot.contract.limits import JointLimits, Locked, joint_kinds, limits_from_urdf, tightest
from ki_robot.contract.names import is_column
from ki_robot.contract.parts import Limits
from ki_robot.errors import RobotError

RATE_HZ = 20.0  # of a policy; controllers interpolate between its steps
SLOW, TURN = 0.5, 6.28  # rad/s or m/s where no file gives a speed; bounds of a joint that turns without end
ASK = 'CHECK: '
TRAJECTORY = ('JointTrajectoryController', 'ScaledJointTrajectoryController')
FORWARD = ('ForwardCommandController', 'JointGroupPositionController')
GRIPPER, BASE, BROADCASTER = (
    'GripperActionController',
    ('DiffDriveController', 'MecanumDriveController'),
    'JointStateBroadcaster',
)


@dataclass(frozen=True)
class DeclaredController:
    """One controller of a parameter file: its name, its type without the package, the package, and its parameters.

    `remaps` are those of its node_options_args: a name below the controller -> the topic.
    """

    name: str
    kind: str
    package: str
    parameters: Mapping[str, Any]
    remaps: Mapping[str, str] = field(default_factory=dict)

    def topic(self, name: str) -> str:
        """Where a topic or action of the controller is, by its name below the controller."""
        return self.remaps.get(name, f'{self.name}/{name}')


@dataclass(frozen=True)
class _JointOutput:
    joints: Sequence[str]
    kind: str
    topic: str  # below the controller's name
    options: str


@dataclass
class _Draft:
    """What is known so far, and what has to be asked."""

    kinds: Mapping[str, str]
    limits: Mapping[str, Limits]
    state: list[str] = field(default_factory=list)
    actions: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    streams: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    commanded: set[str] = field(default_factory=set)


def controllers_of(data: object, where: str = 'controllers') -> tuple[list[DeclaredController], float | None]:
    """The controllers of a ros2_control parameter file, and the update rate of its manager (Hz) where it is said.

    Namespaces and `/**` around the nodes are let pass.

    Raises:
        RobotError: there is no controller_manager.
    """
    nodes = dict(_nodes(data))
    manager = nodes.get('controller_manager')
    if manager is None:
        raise RobotError(f'{where} has no controller_manager with ros__parameters; name the file that starts it.')
    found = []
    for name, entry in manager.items():
        told = entry.get('type') if isinstance(entry, Mapping) else None
        if isinstance(told, str):
            package, _, kind = told.rpartition('/')
            remaps = _remaps(entry.get('node_options_args'))
            found.append(DeclaredController(str(name), kind, package, nodes.get(str(name), {}), remaps))
    rate = manager.get('update_rate')
    return found, float(rate) if isinstance(rate, (int, float)) and rate > 0 else None


def _remaps(arguments: object) -> dict[str, str]:
    """What `-r ~/NAME:=TOPIC` in the arguments of a controller's node says."""
    told = [str(each) for each in arguments] if isinstance(arguments, list) else []
    pairs = (each.removeprefix('~/').split(':=', 1) for each in told if each.startswith('~/') and ':=' in each)
    return {pair[0]: pair[1] for pair in pairs}


def _nodes(data: object, name: str = '') -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(data, Mapping):
        return []
    if isinstance(data.get('ros__parameters'), Mapping):
        return [(name, data['ros__parameters'])]
    return [each for key, value in data.items() for each in _nodes(value, str(key).rpartition('/')[2])]


def draft(
    urdf: str,
    where: str = 'URDF',
    controllers: Sequence[DeclaredController] = (),
    update_hz: float | None = None,
    more_limits: JointLimits | None = None,
) -> str:
    """The text of a contract, with comments.

    Args:
        urdf: The robot's URDF, expanded.
        where: Its name, for errors and the first line.
        controllers: Of its ros2_control; without any, the contract is for training and replay.
        update_hz: Of the controller manager.
        more_limits: Of a joint_limits file; the tighter of both hold.

    Raises:
        RobotError: no joint can be commanded, or a limits file shares none with the URDF.
    """
    kinds = joint_kinds(urdf, where)
    limits, locked = _limits(kinds, limits_from_urdf(urdf, where), more_limits, where)
    made = _Draft({name: kind for name, kind in kinds.items() if name not in locked}, limits)
    made.left += [f'{name}: it cannot move (locked)' for name in locked]
    for controller in sorted(controllers, key=_rank):
        _add(made, controller)
    if not controllers:
        for joint in made.kinds:
            _column(made, joint, gripper=False)
    if not made.actions:
        raise RobotError(
            f'{where} and its controllers command no joint that can be described: joints {_listed(kinds)}, controllers '
            f'{_listed(each.name for each in controllers)}. Name the controllers file of this robot.'
        )
    made.left += [f'{name}: no controller commands it' for name in made.kinds if name not in made.commanded]
    text = _text(made, _name(urdf), where, bool(controllers), update_hz)
    Contract.parse(parse_yaml(text, 'draft', RobotError), f'the draft from {where}')
    return text


def _limits(
    kinds: Mapping[str, str], own: JointLimits, more: JointLimits | None, where: str
) -> tuple[dict[str, Limits], list[str]]:
    if more is not None and kinds.keys().isdisjoint(more):
        raise RobotError(
            f'The limits file names the joints {_listed(more)}, and {where} has {_listed(kinds)}: not one is in both. '
            'Name the limits file of this robot.'
        )
    found: dict[str, Limits] = {}
    locked = []
    for name in kinds:
        sources = [source[name] for source in (own, more or {}) if name in source]
        if any(isinstance(each, Locked) for each in sources):
            locked.append(name)
            continue
        bounds = Limits()
        for each in sources:
            if isinstance(each, Limits):
                bounds = tightest(bounds, each, f'{where}: joint {name!r} together with the limits file')
        found[name] = bounds
    return found, locked


def _rank(controller: DeclaredController) -> int:
    """Trajectories first: where two controllers take the same joints, the smoother one is written."""
    order = (*TRAJECTORY, *FORWARD)
    return order.index(controller.kind) if controller.kind in order else len(order)


def _add(made: _Draft, controller: DeclaredController) -> None:
    """An output for a controller, with its columns; what cannot be described is said."""
    if controller.kind == BROADCASTER:
        return
    if controller.kind in BASE:
        _base(made, controller)
        return
    output = _joint_output(controller)
    why = output if isinstance(output, str) else _why_not(made, output.joints)
    if isinstance(output, str) or why:
        made.left.append(f'controller {controller.name}: {why}')
        return
    columns = ', '.join(_column(made, joint, gripper=output.kind == 'gripper') for joint in output.joints)
    made.outputs += [
        f'  - name: {_slug(controller.name)}',
        f'    kind: {output.kind}',
        f'    topic: {controller.topic(output.topic)}',
        f'    columns: [{columns}]',
    ]
    if output.options:
        made.outputs.append(f'    options: {{{output.options}}}')


def _joint_output(controller: DeclaredController) -> _JointOutput | str:
    """How a controller of joints is commanded, or why that cannot be said."""
    parameters = controller.parameters
    if controller.kind == GRIPPER:
        action = 'parallel_gripper_command' if 'parallel' in controller.package else 'gripper_command'
        joints = [str(parameters['joint'])] if 'joint' in parameters else []
        return _JointOutput(joints, 'gripper', 'gripper_cmd', f'interface: {action}, dead_band: 0.002')
    if controller.kind not in (*TRAJECTORY, *FORWARD):
        return f'{controller.kind} is none that a contract can say'
    joints = [str(each) for each in parameters.get('joints') or ()]
    interfaces = parameters.get('command_interfaces') or [parameters.get('interface_name', 'position')]
    if 'position' not in interfaces:
        return f'it takes {", ".join(map(str, interfaces))}; write it by hand'
    if controller.kind in TRAJECTORY:
        return _JointOutput(joints, 'joint_trajectory', 'joint_trajectory', 'window_s: 0.3, interpolation: cubic')
    return _JointOutput(joints, 'forward_command', 'commands', '')


def _why_not(made: _Draft, joints: Sequence[str]) -> str:
    """Why these joints cannot be commanded together; empty where they can."""
    if not joints:
        return 'its joints are not in the file'
    strange = [joint for joint in joints if joint not in made.kinds]
    if strange:
        return f'joint {strange[0]} is not in the URDF, or does not move'
    return 'it takes joints of another controller' if made.commanded.intersection(joints) else ''


def _base(made: _Draft, controller: DeclaredController) -> None:
    axes = {'base/linear/x/velocity': 'm/s', 'base/angular/z/velocity': 'rad/s'}
    command, odometry = 'cmd_vel', 'odom'
    if controller.kind == 'MecanumDriveController':
        command, odometry = 'reference', 'odometry'
        axes = {'base/linear/x/velocity': 'm/s', 'base/linear/y/velocity': 'm/s', 'base/angular/z/velocity': 'rad/s'}
    name, stream = controller.name, f'{_slug(controller.name)}_odom'
    for column, unit in axes.items():
        limit = controller.parameters
        for part in column.split('/')[1:3]:
            limit = limit.get(part, {}) if isinstance(limit, Mapping) else {}
        speed = limit.get('max_velocity') if isinstance(limit, Mapping) else None
        known = isinstance(speed, (int, float)) and math.isfinite(speed) and speed > 0
        bound = float(speed) if known and speed is not None else SLOW
        made.state.append(f'  - {{name: {column}, unit: {unit}, source: {stream}}}')
        made.actions.append(
            f'  - {{name: {column}, unit: {unit}, representation: absolute, limits: {{lower: {-bound!r}, '
            f'upper: {bound!r}, velocity: {bound!r}}}}}' + ('' if known else f'  # {ASK}no speed limit was given')
        )
    made.streams.append(f'  - {{name: {stream}, topic: {controller.topic(odometry)}, type: odometry, max_age_s: 0.2}}')
    made.outputs += [
        f'  - name: {_slug(name)}',
        '    kind: twist_stamped',
        f'    topic: {controller.topic(command)}',
        f'    columns: [{", ".join(axes)}]',
        f'    frame_id: {controller.parameters.get("base_frame_id", "base_link")}',
    ]


def _column(made: _Draft, joint: str, gripper: bool) -> str:
    """Adds a joint to state and actions; its column."""
    column, kind, limits = f'{joint}/position', made.kinds[joint], made.limits[joint]
    if not is_column(column):
        raise RobotError(f'Joint {shown(joint)} cannot be a column; rename it in the URDF (letters, digits, _).')
    asked = []
    lower, upper, velocity = limits.lower, limits.upper, limits.velocity
    if lower is None or upper is None:
        lower, upper = -TURN if lower is None else lower, TURN if upper is None else upper
        asked.append('no file gives its bounds' if kind != 'continuous' else 'it turns without end; one turn each way')
    if velocity is None:
        velocity = SLOW
        asked.append('no file gives its speed')
    rest = {'acceleration': limits.acceleration, 'jerk': limits.jerk}
    said = {'lower': lower, 'upper': upper, 'velocity': velocity, **{k: v for k, v in rest.items() if v is not None}}
    bounds = ', '.join(f'{key}: {float(value)!r}' for key, value in said.items())
    unit = 'm' if kind == 'prismatic' else 'rad'
    made.commanded.add(joint)
    made.state.append(f'  - {{name: {column}, unit: {unit}, source: joint_states}}')
    made.actions.append(
        f'  - {{name: {column}, unit: {unit}, representation: {"absolute" if gripper else "delta"}, '
        f'limits: {{{bounds}}}}}' + (f'  # {ASK}{"; ".join(asked)}' if asked else '')
    )
    return column


def _text(made: _Draft, name: str, where: str, has_controllers: bool, update_hz: float | None) -> str:
    age_s = 0.1 if update_hz is None else max(0.1, round(5.0 / update_hz, 3))
    joints = (
        f'  - {{name: joint_states, topic: joint_states, type: joint_state, max_age_s: {age_s}, extra_joints: allow}}'
    )
    lines = [
        f'# Drafted from {where}. Every line with {ASK.strip()} is a guess: look at it before the robot moves.',
        '# `ki robot check FILE` says whether it holds, `ki robot check FILE --live` compares it with the robot.',
        f'name: {name}',
        f'rate_hz: {RATE_HZ}  # steps of a policy a second; the controllers'
        + (f' run at {update_hz:g} Hz and' if update_hz else '')
        + ' interpolate',
        'horizon: 50  # steps of a chunk',
        'image_size: 224',
        'sync_tolerance_s: 0.1',
        '',
        'cameras:',
        '  # '
        + ASK
        + 'a URDF names no picture topics; a line for each camera. kind: scene, or wrist where it moves with a hand.',
        '  - {name: scene, topic: camera/image_raw/compressed, transport: compressed, kind: scene, max_age_s: 0.2}',
        '',
        'state_streams:',
        *([joints] if made.commanded else []),
        *made.streams,
        '',
        'state:',
        *made.state,
        '',
        'actions:  # limits: rad or m, a second, a second squared; tighten them for the first runs',
        *made.actions,
    ]
    if has_controllers:
        lines += ['', 'outputs:', *made.outputs]
    else:
        lines += ['', '# Nothing can be commanded: draft it with --controllers FILE, or write outputs by hand.']
    if made.left:
        lines += ['', '# Left out:', *(f'#   {" ".join(each.split())}' for each in made.left)]
    return '\n'.join(lines) + '\n'


def _name(urdf: str) -> str:
    found = re.search(r'<robot\b[^>]*\bname\s*=\s*["\']([^"\']*)', urdf)
    return _slug(found.group(1) if found else '')


def _slug(text: str) -> str:
    plain = re.sub(r'[^a-z0-9]+', '_', text.lower()).strip('_')[:60]
    return plain if plain[:1].isalpha() else f'robot_{plain}'.rstrip('_')


def _listed(names: Any, most: int = 8) -> str:
    found = [shown(str(name)) for name in names]
    return (', '.join(found[:most]) or 'none') + (f' and {len(found) - most} more' if len(found) > most else '')
