"""What a robot is to a model: contracts, messages, observations, chunks and guards, on numpy alone."""
