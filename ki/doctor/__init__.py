"""Checks of data and of a live robot: findings, their page, their form for CI."""
