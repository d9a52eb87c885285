"""ROS messages to arrays and back: states, images, commands."""
