"""The policy node and the chunk executor of one robot.

ros2 launch ki_policy_node policy.launch.py robot:=bimanual_mobile bundle:=/path/to/bundle instruction:="fold the towel"

Nothing moves yet: dry_run is true and the executor is not enabled. When the chunks look right:

ros2 launch ... dry_run:=false   and   ros2 service call /chunk_executor/enable std_srvs/srv/SetBool "{data: true}"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

from ki_policy_node.common.launch_arguments import arguments_for, launch_arguments

POLICY = launch_arguments('policy')


def parameters(node: str) -> list:
    """The file `params_file`, and over it the arguments that are parameters of the node."""
    given = {
        a.name: ParameterValue(LaunchConfiguration(a.name), value_type=a.kind) for a in arguments_for(POLICY, node)
    }
    return [ParameterFile(LaunchConfiguration('params_file'), allow_substs=True), given]


def generate_launch_description() -> LaunchDescription:
    """Both nodes."""
    declared = {name: argument.declaration() for name, argument in POLICY.items()}
    file = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'config', 'node', 'policy.yaml'])
    declared['params_file']['default_value'] = file
    common = {
        'package': 'ki_policy_node',
        'namespace': LaunchConfiguration('namespace'),
        'output': 'screen',
        'ros_arguments': ['--log-level', LaunchConfiguration('log_level')],
    }
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, **words) for name, words in declared.items()),
            Node(executable='policy_node', name='policy_node', parameters=parameters('policy_node'), **common),
            Node(
                executable='chunk_executor',
                name='chunk_executor',
                parameters=parameters('chunk_executor'),
                # The last hold must be out before anything stronger than Ctrl-C ends the process.
                sigterm_timeout='5',
                sigkill_timeout='5',
                **common,
            ),
        ]
    )
