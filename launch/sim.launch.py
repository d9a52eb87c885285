"""The simulated robot with a policy on it: the topics of the physical one, on this machine's clock.

ros2 launch ki_policy_node sim.launch.py bundle:=/path/to/bundle instruction:="put the red cube in the bowl"
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

ARGUMENTS = {
    'robot': ('bimanual_mobile', 'Robot contract that the simulator serves.'),
    'bundle': ('', 'Folder of the policy bundle.'),
    'backend': ('commissioning', 'auto, torch, onnx, tensorrt, or commissioning to move without a model.'),
    'instruction': ('', 'What to do.'),
    'namespace': ('', 'Namespace of the robot.'),
}


def generate_launch_description() -> LaunchDescription:
    """The simulator, and the policy of policy.launch.py enabled: here nothing can be hurt."""
    given = [DeclareLaunchArgument(n, default_value=v, description=d) for n, (v, d) in ARGUMENTS.items()]
    path = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'launch', 'policy.launch.py'])
    fixed = {'dry_run': 'false', 'enabled': 'true'}
    policy = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(path),
        launch_arguments=[*((name, LaunchConfiguration(name)) for name in ARGUMENTS), *fixed.items()],
    )
    simulator = Node(
        package='ki_policy_node',
        executable='sim_robot',
        name='sim_robot',
        namespace=LaunchConfiguration('namespace'),
        output='screen',
        parameters=[{'robot': ParameterValue(LaunchConfiguration('robot'), value_type=str)}],
    )
    return LaunchDescription([*given, simulator, policy])
