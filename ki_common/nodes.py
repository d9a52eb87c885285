"""Which module is which node: the names that `ros2 run ki_policy_node NAME` takes (setup.py installs the same)."""

from __future__ import annotations

NODES = {
    'policy_node': 'ki_policy_node.policy.policy_node',
    'chunk_executor': 'ki_policy_node.executor.executor_node',
    'recorder': 'ki_policy_node.recorder.recorder_node',
    'console': 'ki_policy_node.console.console_node',
    'joy_teleop': 'ki_policy_node.teleop.joy_teleop',
    'leader_teleop': 'ki_policy_node.teleop.leader_teleop',
    'synthetic_robot': 'ki_policy_node.synthetic_robot',
    'sim_robot': 'ki_sim.node.sim_node',
}
