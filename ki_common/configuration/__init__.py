"""Configuration: one YAML reader, one strict model base, one form of error sentence, one schema writer."""
