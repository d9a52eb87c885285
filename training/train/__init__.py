"""A run: its configuration, its loop, its checkpoints, its report."""
