"""The newest message of every stream, checked, and the observation made of them."""
