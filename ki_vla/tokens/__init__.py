"""Text, state and actions as token ids."""
