"""The simulated robot with a policy on it: the topics of the physical one, on this machine's clock.

ros2 launch ki_policy_node sim.launch.py bundle:=/path/to/bundle instruction:="put the red cube in the bowl"
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from ki_policy_node.common.launch_arguments import arguments_for, launch_arguments

SIM = launch_arguments('sim')


def policy(_: LaunchContext) -> list[IncludeLaunchDescription]:
    """The policy of policy.launch.py enabled: here nothing can be hurt.

    Made when it runs, so that `--show-args` does not offer what is fixed here.
    """
    path = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'launch', 'policy.launch.py'])
    given = {name: LaunchConfiguration(name) for name in SIM} | {'dry_run': 'false', 'enabled': 'true'}
    return [IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=given.items())]


def generate_launch_description() -> LaunchDescription:
    """The simulator and the policy."""
    given = arguments_for(SIM, 'sim_robot')
    simulator = Node(
        package='ki_policy_node',
        executable='sim_robot',
        name='sim_robot',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[{a.name: ParameterValue(LaunchConfiguration(a.name), value_type=a.kind) for a in given}],
    )
    declared = (DeclareLaunchArgument(a.name, **a.declaration()) for a in SIM.values())
    return LaunchDescription([*declared, simulator, OpaqueFunction(function=policy)])
