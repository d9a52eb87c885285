"""Closed loop: a policy drives the simulated robot, and its successes are counted."""
