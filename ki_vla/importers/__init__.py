"""Foreign checkpoints in, and back out: every tensor accounted for, one piece in memory at a time."""
