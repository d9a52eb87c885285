"""How an engine, here or on a server, is asked to go on from the chunk that is being executed."""

from __future__ import annotations

CARRIES = {'rtc': 'trained', 'guided': 'guided'}  # the engine's way, by mode


def carried_end(rows: int, delay: int, horizon: int, execute_steps: int) -> int:
    """The first step of the new chunk that nothing pulls towards the old one any more: H - s of real-time chunking.

    Args:
        rows: Steps of the old chunk that lie ahead.
        delay: Steps that will have been executed when the new chunk is there.
        horizon: Steps of a chunk.
        execute_steps: Steps that are executed before the next chunk is due.
    """
    return min(rows, max(delay, horizon - execute_steps))
