"""A recorded bag played into a policy node in dry run, on the bag's clock: what would it have done?

Only what the policy reads is played: the commands in the bag would move whatever listens. All ends when the bag
ends, and fails when it cannot be played.

ros2 launch ki_policy_node replay.launch.py bag:=/path/to/bag robot:=bimanual_mobile bundle:=/path/to/bundle

For numbers and a report use `ki replay`: it reads the bag itself, loses nothing, and gives the same result every time.
"""

import subprocess

from launch import LaunchContext, LaunchDescription
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    Shutdown,
)
from launch.events.process import ProcessExited
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import ExecutableInPackage, FindPackageShare

from ki_policy_node.common.launch_arguments import launch_arguments

POLICY, REPLAY = launch_arguments('policy'), launch_arguments('replay')


def play(context: LaunchContext) -> list[ExecuteProcess]:
    """The player, with the topics that the robot's contract names; `ki` reads it, in the Python of the nodes."""
    bag, rate, delay, robot, namespace = (
        LaunchConfiguration(name).perform(context) for name in ('bag', 'rate', 'delay', 'robot', 'namespace')
    )
    ask = [ExecutableInPackage('ki', 'ki_policy_node').perform(context), 'topic', 'inputs', robot]
    found = subprocess.run([*ask, '--namespace', namespace], check=True, stdout=subprocess.PIPE, text=True)
    topics = found.stdout.split()
    command = ['ros2', 'bag', 'play', bag, '--clock', '--rate', rate, '--delay', delay, '--topics', *topics]
    return [ExecuteProcess(cmd=command, output='screen', on_exit=end)]


def end(event: ProcessExited, context: LaunchContext) -> list[Action]:
    """The end of the player is the end of all; one that failed is the failure of the launch."""
    if context.is_shutdown:
        return []
    if event.returncode:
        raise RuntimeError(f'ros2 bag play ended with status {event.returncode}; what it says above is why.')
    return [LogInfo(msg='the bag is over'), Shutdown(reason='the bag is over')]


def policy(_: LaunchContext) -> list[IncludeLaunchDescription]:
    """The policy of policy.launch.py, never enabled.

    Made when it runs, so that `--show-args` does not offer what is fixed here.
    """
    path = PathJoinSubstitution([FindPackageShare('ki_policy_node'), 'launch', 'policy.launch.py'])
    passed = {name: LaunchConfiguration(name) for name in REPLAY if name in POLICY}
    fixed = {'dry_run': 'true', 'enabled': 'false', 'use_sim_time': 'true', 'respawn': 'false'}
    return [IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=(passed | fixed).items())]


def generate_launch_description() -> LaunchDescription:
    """The policy and the player."""
    declared = (DeclareLaunchArgument(a.name, **a.declaration()) for a in REPLAY.values())
    return LaunchDescription([*declared, OpaqueFunction(function=policy), OpaqueFunction(function=play)])
