"""Recordings on disk: the one place where rosbag2 folders, .mcap and .db3 files are read and written."""
