"""The nodes: cameras and joint states in, timed commands out, episodes into bags."""
