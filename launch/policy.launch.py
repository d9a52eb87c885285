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

ARGUMENTS = {
    'robot': ('bimanual_mobile', 'Robot contract: a name of config/robots, or the path of a YAML file.'),
    'bundle': ('', 'Folder of the policy bundle; empty with backend:=commissioning.'),
    'backend': ('auto', 'auto, torch, onnx, tensorrt, or commissioning to try the robot without a model.'),
    'instruction': ('', 'What to do; empty waits for ~/set_instruction, ~/run or the topic instruction.'),
    'dry_run': ('true', 'Infer, and command nothing.'),
    'enabled': ('false', 'Whether the executor may command from the start; else call chunk_executor/enable.'),
    'run_on_activate': ('true', 'Start a run at once; else call policy_node/start or the action policy_node/run.'),
    'autostart': ('true', 'Configure and activate both nodes; false leaves that to a lifecycle manager.'),
    'namespace': ('', 'Namespace of the robot: every topic is relative to it.'),
    'use_sim_time': ('false', 'Take the time from /clock.'),
    'log_level': ('info', 'debug, info, warn, error or fatal.'),
}


def text(name: str) -> ParameterValue:
    """A launch argument as a parameter that is a word, whatever it looks like."""
    return ParameterValue(LaunchConfiguration(name), value_type=str)


def flag(name: str) -> ParameterValue:
    """A launch argument as a parameter that is true or false."""
    return ParameterValue(LaunchConfiguration(name), value_type=bool)


def generate_launch_description() -> LaunchDescription:
    """Both nodes; their further parameters are in the file `params_file`."""
    given = [DeclareLaunchArgument(n, default_value=v, description=d) for n, (v, d) in ARGUMENTS.items()]
    file = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'config', 'node', 'policy.yaml'])
    given.append(DeclareLaunchArgument('params_file', default_value=file, description='Parameters of both nodes.'))
    parameters = ParameterFile(LaunchConfiguration('params_file'), allow_substs=True)
    shared = {
        'robot': text('robot'),
        'use_sim_time': flag('use_sim_time'),
        'autostart': flag('autostart'),
    }
    policy = {
        'bundle': text('bundle'),
        'backend': text('backend'),
        'instruction': text('instruction'),
        'dry_run': flag('dry_run'),
        'run_on_activate': flag('run_on_activate'),
    }
    common = {
        'package': 'ki_policy_node',
        'namespace': LaunchConfiguration('namespace'),
        'output': 'screen',
        'ros_arguments': ['--log-level', LaunchConfiguration('log_level')],
    }
    return LaunchDescription(
        [
            *given,
            Node(executable='policy_node', name='policy_node', parameters=[parameters, shared, policy], **common),
            Node(
                executable='chunk_executor',
                name='chunk_executor',
                parameters=[parameters, shared, {'enabled': flag('enabled')}],
                # The last hold must be out before anything stronger than Ctrl-C ends the process.
                sigterm_timeout='5',
                sigkill_timeout='5',
                **common,
            ),
        ]
    )
