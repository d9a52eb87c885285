"""Chunks of future commands: in time, between their steps, and within limits."""
