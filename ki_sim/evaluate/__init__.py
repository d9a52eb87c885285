"""Closed loop: a policy drives the simulated robot, and what came of it is counted."""
