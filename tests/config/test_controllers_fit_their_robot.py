"""Every shipped pair of a contract and its ros2_control controllers runs together as it is.

A bring-up is made from `config/controllers/NAME.yaml` as ros2_control documents it: which nodes there are, what they
publish, listen to and serve, which joints the broadcaster reports. The contract is held to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from ki_robot.contract.contract import Contract, load_contract
from ki_robot.contract.names import joint_of
from ki_robot.contract.parts import Output, StateStream
from ki_robot.messages.arrays import joint_values
from ki_robot.messages.states import measured_columns

CONTROLLERS = Path(__file__).resolve().parents[2] / 'config' / 'controllers'
ROBOTS = sorted(path.stem for path in CONTROLLERS.glob('*.yaml'))

JOINT_STATE, ODOMETRY = 'sensor_msgs/msg/JointState', 'nav_msgs/msg/Odometry'
# What a controller of a type publishes and takes, by the topic that its documentation names.
PUBLISHES = {
    'joint_state_broadcaster/JointStateBroadcaster': {'joint_states': JOINT_STATE},
    'mecanum_drive_controller/MecanumDriveController': {'~/odometry': ODOMETRY},
}
TAKES = {
    'joint_trajectory_controller/JointTrajectoryController': {'~/joint_trajectory': 'joint_trajectory'},
    'forward_command_controller/ForwardCommandController': {'~/commands': 'forward_command'},
    'mecanum_drive_controller/MecanumDriveController': {'~/reference': 'twist_stamped'},
    'parallel_gripper_action_controller/GripperActionController': {'~/gripper_cmd': 'gripper'},
}


@dataclass
class Controller:
    """One controller, a node below its controller_manager."""

    node: str  # relative to the robot's namespace, as all names here
    kind: str
    words: list[str]  # of node_options_args
    parameters: dict[str, Any]

    @property
    def remaps(self) -> dict[str, str]:
        """Other names for its topics."""
        assert set(self.words[::2]) <= {'-r'}
        return dict(rule.split(':=') for rule in self.words[1::2])

    @property
    def joints(self) -> list[str]:
        """What it names of the hardware."""
        wheels = [value for name, value in self.parameters.items() if name.endswith('_wheel_command_joint_name')]
        single = [self.parameters['joint']] if 'joint' in self.parameters else []
        return [*self.parameters.get('joints', ()), *single, *wheels]

    def topic(self, name: str) -> str:
        """A topic of the node by its full name."""
        name = self.remaps.get(name, name)
        if name.startswith('~/'):
            return f'{self.node}/{name[2:]}'
        return f'{self.node.rpartition("/")[0]}/{name}'.lstrip('/')


@dataclass
class BringUp:
    """What runs when a file of controllers is loaded."""

    controllers: dict[str, Controller] = field(default_factory=dict)

    @classmethod
    def load(cls, robot: str) -> BringUp:
        """Reads the file as the controller managers and controllers do."""
        content = yaml.safe_load((CONTROLLERS / f'{robot}.yaml').read_text())
        sections = {key.removeprefix('/**/'): section['ros__parameters'] for key, section in content.items()}
        made = cls()
        for manager in [name for name in sections if name.rpartition('/')[2] == 'controller_manager']:
            for name, about in sections[manager].items():
                if isinstance(about, dict):
                    node = f'{manager.rpartition("/")[0]}/{name}'.lstrip('/')
                    words = about.get('node_options_args', [])
                    made.controllers[node] = Controller(node, about['type'], words, sections.pop(node, {}))
        left = [name for name in sections if name.rpartition('/')[2] != 'controller_manager']
        assert not left, f'parameters for {left}, which no controller manager loads'
        return made

    def published(self) -> dict[str, tuple[str, Controller]]:
        """The type and the publisher of every state topic; none has two."""
        found: dict[str, tuple[str, Controller]] = {}
        for controller in self.controllers.values():
            for name, kind in PUBLISHES.get(controller.kind, {}).items():
                local = controller.parameters.get('use_local_topics', False)
                topic = controller.topic(f'~/{name}' if local else name)
                assert topic not in found, f'two publish {topic}'
                found[topic] = (kind, controller)
        return found

    def joint_state(self, broadcaster: Controller) -> Any:
        """What a broadcaster publishes: the joints it is told, or all that its hardware has."""
        names = broadcaster.parameters.get('joints', [])
        if not (names and broadcaster.parameters.get('interfaces')):  # as documented: one alone is not looked at
            space = broadcaster.node.rpartition('/')[0]
            beside = [each for name, each in self.controllers.items() if name.rpartition('/')[0] == space]
            names = list(dict.fromkeys(joint for controller in beside for joint in controller.joints))
        return SimpleNamespace(name=names, position=[0.0] * len(names), velocity=[0.0] * len(names), effort=[])


def measured(contract: Contract, stream: StateStream) -> list[str]:
    """The columns that come from a stream."""
    return [column.name for column in contract.state if column.source == stream.name]


@pytest.mark.parametrize('robot', ROBOTS)
def test_every_state_stream_is_published_with_its_joints(robot: str) -> None:
    contract, bring_up = load_contract(robot), BringUp.load(robot)
    published = bring_up.published()
    for stream in contract.state_streams:
        assert stream.topic in published, f'{robot}: nobody publishes {stream.topic}; there are {sorted(published)}'
        kind, publisher = published[stream.topic]
        assert kind == {'joint_state': JOINT_STATE, 'odometry': ODOMETRY}[stream.type]
        if stream.type == 'joint_state':
            message, columns = bring_up.joint_state(publisher), measured_columns(contract, stream)
            assert set(measured(contract, stream)) <= set(columns)
            values = joint_values(message, columns, stream.prefix, stream.extra_joints)  # refuses as the nodes do
            assert len(values) == len(columns)


@pytest.mark.parametrize('robot', ROBOTS)
def test_every_output_has_its_controller_with_its_joints(robot: str) -> None:
    contract, bring_up = load_contract(robot), BringUp.load(robot)
    for output in contract.outputs:
        controller = bring_up.controllers[output.controller_name]
        taken = {controller.topic(name): kind for name, kind in TAKES[controller.kind].items()}
        assert taken.get(output.topic) == output.kind, f'{robot}: {output.topic} is not among {taken}'
        if output.kind != 'twist_stamped':
            prefix = prefix_of(contract, output)
            assert [prefix + joint for joint in controller.joints] == [joint_of(column) for column in output.columns]


def prefix_of(contract: Contract, output: Output) -> str:
    """What the contract puts before the names of the joints that an output commands."""
    sources = {column.source for column in contract.state if column.name in output.columns}
    [stream] = [stream for stream in contract.state_streams if stream.name in sources]
    # A trajectory names its joints by the contract's names, so they must be the controller's.
    return '' if output.kind in ('joint_trajectory', 'gripper') else stream.prefix


@pytest.mark.parametrize('robot', ROBOTS)
def test_a_trajectory_controller_neither_jumps_nor_moves_on_at_the_end(robot: str) -> None:
    bring_up = BringUp.load(robot)
    for output in load_contract(robot).outputs:
        if output.kind == 'joint_trajectory':
            given = bring_up.controllers[output.controller_name].parameters
            assert given['interpolate_from_desired_state'] is True
            assert given['allow_nonzero_velocity_at_trajectory_end'] is False
            assert given['cmd_timeout'] == 0.0, 'a timeout goes to the measured pose, in one step'


def test_a_base_stops_by_itself_when_nobody_drives_it() -> None:
    assert 0.0 < BringUp.load('bimanual_mobile').controllers['base_controller'].parameters['reference_timeout'] <= 0.3


MESSAGES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'forward_command': 'std_msgs/msg/Float64MultiArray',
    'twist_stamped': 'geometry_msgs/msg/TwistStamped',
}


@pytest.mark.ros
@pytest.mark.parametrize('robot', ['bimanual_mobile', 'bimanual_static'])  # arm_single needs control_msgs
def test_the_executor_finds_what_a_file_brings_up(robot: str, rigs: ModuleType, tmp_path: Path) -> None:
    """With real nodes, whose names and remappings ROS itself resolves."""
    import rclpy
    from std_msgs.msg import String

    from ki_policy_node.common import ros

    bring_up, nodes, senders, heard = BringUp.load(robot), [], [], []
    with ros.node('observer') as observer:
        for controller in bring_up.controllers.values():
            space, _, name = controller.node.rpartition('/')
            arguments = {'cli_args': ['--ros-args', *controller.words], 'use_global_arguments': False}
            node = rclpy.create_node(name, namespace=space, **arguments)
            nodes.append(node)
            for topic, kind in PUBLISHES.get(controller.kind, {}).items():
                senders.append((node.create_publisher(ros.message_class(kind), topic, 10), controller))
            for topic, kind in TAKES.get(controller.kind, {}).items():
                node.create_subscription(ros.message_class(MESSAGES[kind]), topic, lambda message: None, 10)
        observer.create_subscription(String, 'chunk_executor/state', lambda message: heard.append(message.data), 10)
        given = {'robot': robot, 'enabled': True} | rigs.PATIENT
        executor = rigs.Process('ki_policy_node.executor.executor_node', tmp_path / 'executor.log', given)

        def moving() -> bool:
            for publisher, controller in senders:
                message = publisher.msg_type()
                message.header.stamp = observer.get_clock().now().to_msg()
                if publisher.msg_type.__name__ == 'JointState':
                    state = bring_up.joint_state(controller)
                    message.name, message.position, message.velocity = state.name, state.position, state.velocity
                publisher.publish(message)
            return bool(heard) and heard[-1] == 'idle: waits for a chunk'

        try:
            found = ros.spin_until(observer, moving, 20.0)
            ros.spin_until(observer, lambda: not moving(), 0.5)  # states that it would refuse are refused now
        finally:
            status = executor.end()
            for node in nodes:
                node.destroy_node()
    assert found, (heard, executor.text())
    assert '[WARN]' not in executor.text()
    assert '[ERROR]' not in executor.text()
    assert status == 0
