"""What every room uses: errors, configuration, files on disk, the share folder. Knows no robot and no ROS."""
