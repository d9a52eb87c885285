"""What a robot is: the contract of its cameras, columns, limits and controllers."""
