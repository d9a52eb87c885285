"""The robot, its scene and its controllers in MuJoCo."""
