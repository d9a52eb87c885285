"""The simulated robot as a ROS 2 node."""
