"""The chunk executor: from chunks to commands, within limits, without a model."""
