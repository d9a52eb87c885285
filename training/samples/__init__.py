"""An index to batches: samples, mixtures, augmentation, language data."""
