"""Who of several browsers is in control, and whether its page still lives. Time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

MAX_NAME = 40
LIVE_NS = 2_000_000_000  # a page that is silent for so long has lost control
ECHO_NS = 700_000_000  # a heartbeat answers what it was sent at most so long ago


@dataclass(frozen=True)
class Holder:
    """The browser in control."""

    client: int
    name: str
    heard_ns: int


class ControlDesk:
    """At most one client is in control; the others watch, and may stop the robot all the same."""

    def __init__(self) -> None:
        self._holder: Holder | None = None

    def holder(self, now_ns: int) -> Holder | None:
        """Who is in control; nobody once the page has been silent for a while."""
        if self._holder is not None and now_ns - self._holder.heard_ns > LIVE_NS:
            self._holder = None
        return self._holder

    def holds(self, client: int, now_ns: int) -> bool:
        """Whether a client is in control."""
        holder = self.holder(now_ns)
        return holder is not None and holder.client == client

    def claim(self, client: int, name: str, now_ns: int, insist: bool = False) -> str:
        """Takes control; returns why not, or an empty text. `insist` takes it from somebody who is there."""
        name = ' '.join(name.split())[:MAX_NAME]
        if not name or not name.isprintable():
            return 'Say who you are before you take control.'
        holder = self.holder(now_ns)
        if holder is not None and holder.client != client and not insist:
            return f'{holder.name} has control; ask for it, or insist.'
        self._holder = Holder(client, name, now_ns)
        return ''

    def release(self, client: int) -> bool:
        """Gives control back; False where the client had none."""
        if self._holder is None or self._holder.client != client:
            return False
        self._holder = None
        return True

    def beat(self, client: int, echoed_ns: int, now_ns: int) -> str:
        """A heartbeat of a client, which echoes the newest time it was sent; the live operator's name, if it counts.

        What a network has held back for a while comes all at once, and says nothing about now.
        """
        if not self.holds(client, now_ns) or not 0 <= now_ns - echoed_ns <= ECHO_NS:
            return ''
        assert self._holder is not None
        self._holder = Holder(client, self._holder.name, now_ns)
        return self._holder.name
