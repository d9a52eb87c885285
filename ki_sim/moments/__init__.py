"""Labelled moments: a picture of any state, and what the expert's law would do from there; no physics is stepped."""
