"""Recordings to an index: streams, clocks, episodes on the grid of a contract."""
