"""The policy node and the chunk executor of one robot.

ros2 launch ki_policy_node policy.launch.py robot:=bimanual_mobile bundle:=/path/to/bundle instruction:="fold the towel"

Nothing moves yet: dry_run is true and the executor is not enabled. When the chunks look right:

ros2 launch ... dry_run:=false   and   ros2 service call /chunk_executor/enable std_srvs/srv/SetBool "{data: true}"

A policy node that dies is started again (respawn, respawn_delay), while the executor holds the robot. It does not go on
by itself: ros2 service call /policy_node/start std_srvs/srv/Trigger
"""

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, RegisterEventHandler, TimerAction
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessExit
from launch.events.process import ProcessExited
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

from ki_policy_node.common.launch_arguments import arguments_for, launch_arguments

POLICY = launch_arguments('policy')
FINAL = (0, 2)  # a node that was told to end, or has refused what it was given, does not come back
COMMON = {
    'package': 'ki_policy_node',
    'namespace': LaunchConfiguration('namespace'),
    'output': 'screen',
    'ros_arguments': ['--log-level', LaunchConfiguration('log_level')],
}


def parameters(node: str) -> list:
    """The file `params_file`, and over it the arguments that are parameters of the node."""
    given = {
        a.name: ParameterValue(LaunchConfiguration(a.name), value_type=a.kind) for a in arguments_for(POLICY, node)
    }
    return [ParameterFile(LaunchConfiguration('params_file'), allow_substs=True), given]


def policy_node(context: LaunchContext, restarted: bool = False) -> list[Action]:
    """The policy node, and what follows its death. A restarted one waits to be told to run."""
    respawn, delay_s = (LaunchConfiguration(name).perform(context) for name in ('respawn', 'respawn_delay'))
    over = [{'run_on_activate': False}] if restarted else []
    node = Node(executable='policy_node', name='policy_node', parameters=parameters('policy_node') + over, **COMMON)
    again = TimerAction(period=float(delay_s), actions=[OpaqueFunction(function=policy_node, args=[True])])

    def on_exit(event: ProcessExited, _: LaunchContext) -> list[Action]:
        if event.returncode in FINAL:
            return []
        return [LogInfo(msg=f'policy_node is started again in {delay_s} s; it runs when ~/start is called'), again]

    restart = RegisterEventHandler(OnProcessExit(target_action=node, on_exit=on_exit))
    return [node, restart] if respawn == 'true' else [node]


def generate_launch_description() -> LaunchDescription:
    """Both nodes."""
    declared = {name: argument.declaration() for name, argument in POLICY.items()}
    file = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'config', 'node', 'policy.yaml'])
    declared['params_file']['default_value'] = file
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, **words) for name, words in declared.items()),
            OpaqueFunction(function=policy_node),
            Node(
                executable='chunk_executor',
                name='chunk_executor',
                parameters=parameters('chunk_executor'),
                # The last hold must be out before anything stronger than Ctrl-C ends the process.
                sigterm_timeout='5',
                sigkill_timeout='5',
                **COMMON,
            ),
            Node(
                executable='console',
                name='console',
                parameters=[
                    ParameterFile(LaunchConfiguration('params_file'), allow_substs=True),
                    {'robot': ParameterValue(LaunchConfiguration('robot'), value_type=str)},
                ],
                condition=IfCondition(LaunchConfiguration('console')),
                **COMMON,
            ),
        ]
    )
