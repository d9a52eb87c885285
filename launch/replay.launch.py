"""A recorded bag played into a policy node in dry run, on the bag's clock: what would it have done?

ros2 launch ki_policy_node replay.launch.py bag:=/path/to/bag robot:=bimanual_mobile bundle:=/path/to/bundle

For numbers and a report use `ki replay`: it reads the bag itself, loses nothing, and gives the same result every time.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    'bag': (None, 'The rosbag2 folder or .mcap to play.'),
    'rate': ('1.0', 'How fast to play it.'),
    'robot': ('bimanual_mobile', 'Robot contract: a name of config/robots, or the path of a YAML file.'),
    'bundle': ('', 'Folder of the policy bundle.'),
    'backend': ('auto', 'auto, torch, onnx, tensorrt, or commissioning.'),
    'instruction': ('', 'What to do.'),
    'namespace': ('', 'Namespace of the robot.'),
}


def generate_launch_description() -> LaunchDescription:
    """The policy of policy.launch.py, never enabled, and the player."""
    given = [DeclareLaunchArgument(n, default_value=v, description=d) for n, (v, d) in ARGUMENTS.items()]
    path = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'launch', 'policy.launch.py'])
    passed = {name: LaunchConfiguration(name) for name in ('robot', 'bundle', 'backend', 'instruction', 'namespace')}
    fixed = {'dry_run': 'true', 'enabled': 'false', 'use_sim_time': 'true'}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path), launch_arguments=[*passed.items(), *fixed.items()]
    )
    player = ExecuteProcess(
        cmd=['ros2', 'bag', 'play', LaunchConfiguration('bag'), '--clock', '--rate', LaunchConfiguration('rate')],
        output='screen',
    )
    return LaunchDescription([*given, policy, player])
