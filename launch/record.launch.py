"""The episode recorder.

ros2 launch ki_policy_node record.launch.py folder:=~/bags
ros2 launch ki_policy_node record.launch.py namespace:=robot1 topics:='/room/camera/image_raw /scale/weight'
ros2 service call /recorder/start_recording ki_msgs/srv/StartRecording "{task: 'fold the towel'}"
"""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

from ki_policy_node.common.launch_arguments import arguments_for, launch_arguments

RECORD = launch_arguments('record')


def recorder(context: LaunchContext) -> list[Action]:
    """The node; an empty list of topics would be a parameter without a type."""
    given = {
        a.name: ParameterValue(LaunchConfiguration(a.name), value_type=a.kind)
        for a in arguments_for(RECORD, 'recorder')
    }
    extra = LaunchConfiguration('topics').perform(context).split()
    return [
        Node(
            package='ki_policy_node',
            executable='recorder',
            name='recorder',
            namespace=LaunchConfiguration('namespace'),
            output='screen',
            parameters=[
                ParameterFile(LaunchConfiguration('params_file'), allow_substs=True),
                given | ({'extra_topics': extra} if extra else {}),
            ],
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """One node."""
    declared = {name: argument.declaration() for name, argument in RECORD.items()}
    file = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'config', 'node', 'recorder.yaml'])
    declared['params_file']['default_value'] = file
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, **words) for name, words in declared.items()),
            OpaqueFunction(function=recorder),
        ]
    )
