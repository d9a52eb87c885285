"""Import and export of other projects' checkpoints: strict about every tensor, streamed piece by piece."""
