"""Thin adapters: a joystick and a leader arm as commands of a human to the chunk executor."""
