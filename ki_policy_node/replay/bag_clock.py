"""The robot's clock while a bag is replayed: the bag's own where the recorder ran on it, else told by the states.

A simulation recorded without sim time is logged by the wall's clock and stamped by the simulator's, which may run at
another pace and be reset. `training.index.clocks` reads the same bags by the same rules.
"""

from __future__ import annotations

from ki_bags.reader import Bag
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import NS, sent_ns
from ki_robot.observation.stamps import FUTURE_TOLERANCE_NS, is_too_old

JUMP_NS = NS  # stamps and log that part by more than this: the clock was set
SETTLED = 3  # messages in a row that say so; a late one alone is no clock that was set
SMOOTHING = 0.1  # of the pace, a message


class BagClock:
    """Log time -> time of the robot.

    Args:
        bag: The recording.
        contract: Its robot; the first state stream that is stamped by its driver tells the time.
        streams: Topic of the bag -> streams that it feeds.
    """

    def __init__(self, bag: Bag, contract: Contract, streams: dict[str, tuple[str, ...]]) -> None:
        self.jumps: list[str] = []
        topics = {name: topic for topic, names in streams.items() for name in names}
        dated = [spec for spec in contract.state_streams if spec.stamp == 'header' and spec.name in topics]
        self.topic = topics[dated[0].name] if dated else ''
        self._max_age_s = dated[0].max_age_s if dated else 0.0
        self._anchor: tuple[int, int] | None = None  # log time and stamp of the newest state
        self._is_bags_own = True
        self._pace = 1.0
        self._apart = 0
        self._begin(bag)

    def now(self, log_ns: int) -> int:
        """What time it was on the robot when a message was written."""
        if self._anchor is None or self._is_bags_own:
            return log_ns
        anchor_log_ns, anchor_ns = self._anchor
        return anchor_ns + round((log_ns - anchor_log_ns) * self._pace)

    def see(self, topic: str, message: object, log_ns: int) -> None:
        """Takes every message of the bag in turn; only the states tell the time."""
        if topic != self.topic or (stamp_ns := _stamp_of(message)) <= 0:
            return
        if self._anchor is None:
            self._start(log_ns, stamp_ns)
            return
        apart_ns = stamp_ns - self.now(log_ns)
        if abs(apart_ns) > JUMP_NS:
            self._apart += 1
            if self._apart >= SETTLED:
                self.jumps.append(
                    f'The clock of {topic} jumps by {apart_ns / NS:+.1f} s; the replay goes on in the new time.'
                )
                self._start(log_ns, stamp_ns)
            return
        self._apart = 0
        if not self._is_bags_own:
            self._follow(log_ns, stamp_ns)

    def _begin(self, bag: Bag) -> None:
        """The first state of the bag: what is written before it is dated by it, too."""
        for message in bag.messages([self.topic]) if self.topic else ():
            try:
                self.see(self.topic, bag.decode(message), message.log_ns)
            except Exception:  # damaged CDR raises nearly anything; the replay counts it
                continue
            if self._anchor is not None:
                return

    def _start(self, log_ns: int, stamp_ns: int) -> None:
        age_ns = log_ns - stamp_ns
        self._is_bags_own = age_ns >= -FUTURE_TOLERANCE_NS and not is_too_old(age_ns, self._max_age_s)
        self._anchor, self._pace, self._apart = (log_ns, stamp_ns), 1.0, 0

    def _follow(self, log_ns: int, stamp_ns: int) -> None:
        assert self._anchor is not None
        passed_log_ns, passed_ns = log_ns - self._anchor[0], stamp_ns - self._anchor[1]
        if passed_log_ns > 0 <= passed_ns:
            self._pace += SMOOTHING * (min(passed_ns / passed_log_ns, 20.0) - self._pace)
        self._anchor = (log_ns, stamp_ns)


def _stamp_of(message: object) -> int:
    """The stamp of a message; 0 of one that has none, such as of tf."""
    return sent_ns(message) if hasattr(message, 'header') else 0
