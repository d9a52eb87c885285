"""What the nodes share: parameters, processes, subscriptions, diagnostics."""
