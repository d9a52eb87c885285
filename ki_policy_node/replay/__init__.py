"""Bags through the policy: offline, and live over DDS; how far from what was recorded."""
