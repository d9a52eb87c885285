"""Looks for data that a model would learn wrong things from."""
