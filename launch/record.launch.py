"""The episode recorder.

ros2 launch ki_policy_node record.launch.py folder:=~/bags
ros2 service call /recorder/start_recording ki_msgs/srv/StartRecording "{task: 'fold the towel'}"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

ARGUMENTS = {
    'folder': ('bags', 'Where episodes are written, one bag each.'),
    'prefix': ('episode', 'What the bags are called.'),
    'task': ('', 'Record one episode of this task at once; empty waits for the service or the action.'),
    'namespace': ('', 'Namespace of the robot.'),
    'use_sim_time': ('false', 'Take the time from /clock.'),
}


def generate_launch_description() -> LaunchDescription:
    """One node."""
    given = [DeclareLaunchArgument(n, default_value=v, description=d) for n, (v, d) in ARGUMENTS.items()]
    words = {name: ParameterValue(LaunchConfiguration(name), value_type=str) for name in ('folder', 'prefix', 'task')}
    sim_time = {'use_sim_time': ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)}
    recorder = Node(
        package='ki_policy_node',
        executable='recorder',
        name='recorder',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[words | sim_time],
    )
    return LaunchDescription([*given, recorder])
