"""The recorder: episodes into bags."""
