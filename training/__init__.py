"""From recordings to a trained policy: index, samples, statistics, mixture, trainer."""
