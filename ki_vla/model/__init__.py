"""The network: vision tower, backbone, action expert, and the attention that insulates the backbone."""
