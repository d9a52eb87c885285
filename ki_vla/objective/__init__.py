"""What the network is trained on: batches, the three losses, the recipes."""
