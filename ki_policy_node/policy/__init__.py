"""The policy node: the lifecycle around the cycle, its run, its backends, what it says of itself."""
