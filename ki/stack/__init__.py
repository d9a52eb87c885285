"""The processes of a robot, started and watched without `ros2 launch`."""
