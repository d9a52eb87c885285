"""The operator's page: what the robot sees, does and intends, in a browser, and the buttons to start and stop it."""
