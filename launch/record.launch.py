"""The episode recorder.

ros2 launch ki_policy_node record.launch.py folder:=~/bags
ros2 service call /recorder/start_recording ki_msgs/srv/StartRecording "{task: 'fold the towel'}"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from ki_policy_node.common.launch_arguments import arguments_for, launch_arguments

RECORD = launch_arguments('record')


def generate_launch_description() -> LaunchDescription:
    """One node."""
    given = arguments_for(RECORD, 'recorder')
    recorder = Node(
        package='ki_policy_node',
        executable='recorder',
        name='recorder',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[{a.name: ParameterValue(LaunchConfiguration(a.name), value_type=a.kind) for a in given}],
    )
    return LaunchDescription([*(DeclareLaunchArgument(a.name, **a.declaration()) for a in RECORD.values()), recorder])
