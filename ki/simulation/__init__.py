"""Policies in the simulator: driven, judged, corrected; and the data that it makes."""
