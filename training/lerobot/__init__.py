"""LeRobot datasets, in and out."""
