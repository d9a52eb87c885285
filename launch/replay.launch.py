"""A recorded bag played into a policy node in dry run, on the bag's clock: what would it have done?

Only what the policy reads is played: the commands in the bag would move whatever listens.

ros2 launch ki_policy_node replay.launch.py bag:=/path/to/bag robot:=bimanual_mobile bundle:=/path/to/bundle

For numbers and a report use `ki replay`: it reads the bag itself, loses nothing, and gives the same result every time.
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from ki_robot.contract.contract import load_contract

ARGUMENTS = {
    'bag': (None, 'The rosbag2 folder or .mcap to play.'),
    'rate': ('1.0', 'How fast to play it.'),
    'delay': ('10.0', 'How long the policy has for loading before the bag is played [s].'),
    'robot': ('bimanual_mobile', 'Robot contract: a name of config/robots, or the path of a YAML file.'),
    'bundle': ('', 'Folder of the policy bundle.'),
    'backend': ('auto', 'auto, torch, onnx, tensorrt, or commissioning.'),
    'instruction': ('', 'What to do.'),
    'namespace': ('', 'Namespace of the robot.'),
}


def play(context: LaunchContext) -> list[ExecuteProcess]:
    """The player, with the topics that the robot's contract names."""
    bag, rate, delay, robot, namespace = (
        LaunchConfiguration(name).perform(context) for name in ('bag', 'rate', 'delay', 'robot', 'namespace')
    )
    contract = load_contract(robot)
    names = [stream.topic for stream in contract.streams] + ['instruction']
    prefix = f'/{namespace.strip("/")}/' if namespace.strip('/') else '/'
    topics = [name if name.startswith('/') else prefix + name for name in names]
    command = ['ros2', 'bag', 'play', bag, '--clock', '--rate', rate, '--delay', delay, '--topics', *topics]
    return [ExecuteProcess(cmd=command, output='screen')]


def generate_launch_description() -> LaunchDescription:
    """The policy of policy.launch.py, never enabled, and the player."""
    given = [DeclareLaunchArgument(n, default_value=v, description=d) for n, (v, d) in ARGUMENTS.items()]
    path = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'launch', 'policy.launch.py'])
    passed = {name: LaunchConfiguration(name) for name in ('robot', 'bundle', 'backend', 'instruction', 'namespace')}
    fixed = {'dry_run': 'true', 'enabled': 'false', 'use_sim_time': 'true'}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path), launch_arguments=[*passed.items(), *fixed.items()]
    )
    return LaunchDescription([*given, policy, OpaqueFunction(function=play)])
