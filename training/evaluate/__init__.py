"""What a policy has learned, and whether a robot shows it what it was trained on."""
