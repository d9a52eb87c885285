"""The policy cycle: when a chunk is due, what is planned, how it joins the last one. No ROS, no clock of its own."""
