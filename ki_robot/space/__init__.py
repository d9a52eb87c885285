"""Where a robot's links are in space, from its URDF: what may not touch, and what may not leave a box."""
