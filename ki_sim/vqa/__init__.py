"""Questions and answers about scenes, true by construction."""
