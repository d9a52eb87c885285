"""Demonstrations on disk: frames, bags, films."""
