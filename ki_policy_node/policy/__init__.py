"""The policy node: when a chunk is due, what it is made of, what the node says of itself."""
