"""A policy and a robot on two machines: openpi's websocket protocol, its server and a client. No torch at import."""
