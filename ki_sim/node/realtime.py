"""The simulated robot in real time, or faster: one thread for the physics, one for the cameras. No ROS.

The physics thread alone touches the world. Every 10 ms of simulated time it takes the commands that have come, steps,
and measures; when a picture is due it hands the camera thread a copy of what is to be drawn. MuJoCo, OpenGL and the
JPEG encoder leave Python's lock alone, so the two share two cores.

Pace. `speed` 1 keeps real time: a late tick is made up for, and beyond half a second it is lost and
reported as a real-time factor below 1. The cameras give way first: a picture that is due while the last one is still
being drawn, or while the physics is behind, is left out and counted. With a clock (`clock`) it is the other way
round: time waits for every picture, and whoever follows /clock waits too. `speed` 0 then runs as fast as it goes.

Lock step. Before every step of 50 ms time stands still until each controller has been commanded since the last step,
at most `PATIENCE_S` of the wall clock, so that an idle robot does not stop the world. Where an operator is to drive,
time stands still while he does not, and the same seed gives the same states, bit for bit.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from ki_sim.errors import SimError
from ki_sim.evaluate.episode_monitor import EpisodeMonitor
from ki_sim.record.record import Tick, tick_of
from ki_sim.record.sim_bags import EPOCH_NS
from ki_sim.world.camera_thread import CameraThread, Images
from ki_sim.world.robot import CAMERAS
from ki_sim.world.world import STEP_NS, TICK_NS, World

PATIENCE_S = 0.1
BACKLOG_NS = 500_000_000  # what of real time may be made up for
BEHIND_NS = 30_000_000  # physics this late has the next picture left out ...
PICTURE_AGE_NS = 200_000_000  # ... unless the last one is older than this


@dataclass(frozen=True)
class SimSettings:
    """What is simulated and how fast.

    `clock`: stamps are simulated time, which goes on over resets, and the clock is told; otherwise stamps are the
    system's time. Everything but real time needs it. `operated`: an operator is going to drive by the command topics.
    """

    task: str = 'demo'
    seed: int = 0
    goal: int | None = None
    split: str = 'train'
    image_size: tuple[int, int] = (96, 96)
    cameras: tuple[str, ...] = CAMERAS
    camera_hz: float = 20.0
    speed: float = 1.0
    clock: bool = False
    lock_step: bool = False
    operated: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.speed <= 100.0:
            raise SimError(f'speed is {self.speed}: give a real-time factor up to 100, or 0 for as fast as it goes')
        if not 1.0 <= self.camera_hz <= 100.0:
            raise SimError(f'camera_hz is {self.camera_hz}: give 1 to 100 pictures a second')
        if (self.speed != 1.0 or self.lock_step) and not self.clock:
            raise SimError('a simulation that is not in real time needs its clock on /clock: set clock to true')

    @property
    def whole(self) -> bool:
        """Whether time waits for every picture: who follows the clock does not mind waiting."""
        return self.clock


class Outlets(Protocol):
    """Where it all goes. `pictures` is called by the camera thread, the others by the physics thread."""

    def clock(self, time_ns: int) -> None:
        """What time it is; only with a clock."""
        ...

    def senses(self, tick: Tick) -> None:
        """Joints and base; `tick.time_ns` is the stamp."""
        ...

    def pictures(self, time_ns: int, images: Images) -> None:
        """One picture of every camera."""
        ...

    def refused(self, source: str, sentence: str) -> None:
        """A command that no controller took."""
        ...

    def failed(self, error: Exception) -> None:
        """The simulation cannot go on."""
        ...


class Operator(Protocol):
    """Somebody who knows the world and drives the robot, by its command topics."""

    def act(self, time_ns: int, world: World) -> bool:
        """Called every 50 ms with the stamp of this moment; False when there is no more to do."""
        ...


@dataclass
class Counters:
    """What a diagnosis shows."""

    ticks: int = 0
    pictures: int = 0
    left_out: int = 0
    commands: int = 0
    refused: int = 0
    lost_ns: int = 0
    lag_ns: int = 0
    waits: int = 0


class LiveSimulation:
    """Runs a world until `close`.

    Args:
        settings: What and how fast.
        outlets: Where it all goes.
        sources: Names of the controllers' commands, which lock step waits for.

    Raises:
        SimError: an unknown task, a bad seed, no OpenGL.
    """

    def __init__(self, settings: SimSettings, outlets: Outlets, sources: tuple[str, ...]) -> None:
        self.settings, self.outlets, self.counters = settings, outlets, Counters()
        self.operator: Operator | None = None
        self.world = World(settings.task, settings.seed, settings.goal, settings.split, cameras=())
        self.monitor = EpisodeMonitor(self.world)
        self.stopped = False
        self._sources = frozenset(sources)
        self._commanded: set[str] = set()
        self._inbox: deque[tuple[str, Callable[[World, int], None]]] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._news = threading.Condition()
        self._ending = False
        self._base_ns = EPOCH_NS if settings.clock else 0
        self.stamp_ns = 0
        self._due_ns = 0
        self._step_open = False
        self._frames = 0
        self._picture_ns = -PICTURE_AGE_NS
        self.camera = CameraThread(settings.image_size, settings.cameras, self._pictured)
        self.camera.check(self.world)
        self._thread = threading.Thread(target=self._guarded, name='physics', daemon=True)

    def start(self) -> None:
        """Lets time run."""
        self._thread.start()

    def close(self) -> None:
        """Ends both threads; may be called twice."""
        with self._news:
            self._ending = True
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join(5.0)
        self.camera.close()

    # from other threads -----------------------------------------------------------------------------------------

    def command(self, source: str, apply: Callable[[World, int], None]) -> None:
        """Hands a command over; `apply(world, offset)` runs at the next tick, stamp - offset is the world's time."""
        with self._news:
            self._inbox.append((source, apply))
            self._commanded.add(source)
            self._news.notify()

    def refuse(self, source: str, sentence: str) -> None:
        """Counts a command that never reached the world."""
        self.command(source, lambda world, offset: _raise(sentence))

    def call(self, job: Callable[[], Any], timeout_s: float = 30.0) -> Any:
        """Runs a job in the physics thread, between two ticks, and returns its result or raises its error."""
        done: Future[Any] = Future()
        with self._news:
            if self._ending or not self._thread.is_alive():
                raise SimError('the simulation has ended: start it again')
            self._jobs.append((job, done))
            self._news.notify()
        return done.result(timeout_s)

    # jobs, for `call` -------------------------------------------------------------------------------------------

    def reset(self, seed: int, task: str, goal: int | None, split: str) -> str:
        """Begins another episode; nothing changes when it cannot be had. Returns its instruction."""
        passed_ns = self.world.time_ns + TICK_NS
        self.world.reset(seed, task, goal, split)
        # Time goes on: stamps of the new scene come after those of the old one.
        self._base_ns += passed_ns if self.settings.clock else 0
        self.operator, self.monitor, self._step_open = None, EpisodeMonitor(self.world), False
        self._due_ns = time.monotonic_ns()
        self._frames, self._picture_ns = 0, -PICTURE_AGE_NS
        self._inbox.clear()
        self._commanded.clear()
        if self.stopped:
            self.world.emergency_stop()
        self._show()
        return self.world.instruction

    def press(self, pressed: bool) -> None:
        """The emergency stop."""
        self.stopped = pressed
        if pressed:
            self.world.emergency_stop()
        else:
            self.world.release()

    def operate(self, operator: Operator | None) -> None:
        """Lets somebody drive from the next step on."""
        self.operator, self._step_open = operator, False
        if operator is not None and self.settings.operated and self.world.time_ns == 0:
            self._frames = 0
            self._show()  # who records from here on shall have the beginning, too

    def _pictured(self, time_ns: int, images: Images) -> None:
        self.counters.pictures += 1
        self.outlets.pictures(time_ns, images)

    # the physics thread -----------------------------------------------------------------------------------------

    def _guarded(self) -> None:
        try:
            self._due_ns = time.monotonic_ns()
            self._show()
            while not self._ending:
                self._turn()
        except Exception as error:
            self.outlets.failed(error)
        finally:
            self._ending = True
            for _, done in self._jobs:
                done.set_exception(SimError('the simulation has ended: start it again'))

    def _turn(self) -> None:
        """One tick."""
        self._do_jobs()
        if self.world.time_ns % STEP_NS == 0:
            if not self._step_open:
                self.monitor.look(self.world)
                self._operate()
                self._step_open = True
            if self.settings.lock_step and not self._all_commanded():
                return  # something is asked of us meanwhile
        self._take_commands()
        self._pace()
        self.world.advance(TICK_NS)
        self._step_open = False
        self.counters.ticks += 1
        self._show()

    def _operate(self) -> None:
        if self.operator is None or self.stopped:
            return
        error = ''
        try:
            going = not self.monitor.late(self.world) and self.operator.act(self.stamp_ns, self.world)
        except SimError as why:
            going, error = False, str(why)
        if not going:
            self.operator = None
            self.monitor.finish(self.world, error)

    def _all_commanded(self) -> bool:
        """Waits, and says whether time may go on."""
        operated = self.settings.operated and not self.stopped
        patience_s = 5.0 if self.operator is not None else PATIENCE_S
        end = time.monotonic() + patience_s
        with self._news:
            while not self._commanded >= self._sources:
                if self._jobs or self._ending:
                    return False
                left = end - time.monotonic()
                if left <= 0.0:
                    if operated and self.operator is None:
                        return False
                    self.counters.waits += 1
                    break
                self._news.wait(left)
            self._commanded.clear()
        return True

    def _take_commands(self) -> None:
        with self._news:
            taken, self._inbox = self._inbox, deque()
        offset_ns = self.stamp_ns - self.world.time_ns
        for source, apply in taken:
            self.counters.commands += 1
            try:
                apply(self.world, offset_ns)
                self.monitor.begin(self.world)
            except SimError as error:
                self.counters.refused += 1
                self.outlets.refused(source, str(error))

    def _do_jobs(self) -> None:
        while True:
            with self._news:
                if not self._jobs:
                    return
                job, done = self._jobs.popleft()
            try:
                done.set_result(job())
            except Exception as error:
                done.set_exception(error)

    def _pace(self) -> None:
        if self.settings.speed == 0.0:
            return
        self._due_ns += round(TICK_NS / self.settings.speed)
        late_ns = time.monotonic_ns() - self._due_ns
        if late_ns < 0:
            time.sleep(-late_ns / 1e9)
            late_ns = max(0, time.monotonic_ns() - self._due_ns)
        elif late_ns > BACKLOG_NS:
            self.counters.lost_ns += late_ns
            self._due_ns += late_ns
            late_ns = 0
        self.counters.lag_ns = late_ns

    def _show(self) -> None:
        """Measures, and hands over a picture when one is due."""
        world = self.world
        if self.settings.clock:
            self.stamp_ns = self._base_ns + world.time_ns
            self.outlets.clock(self.stamp_ns)
        else:
            # A tick carries the time at which it was due, so that stamps are as even as the ticks.
            late_ns = max(0, time.monotonic_ns() - self._due_ns)
            self.stamp_ns = max(self.stamp_ns + 1, time.time_ns() - late_ns)
        self.outlets.senses(tick_of(world, self.stamp_ns))
        if world.time_ns < self._frames * 1e9 / self.settings.camera_hz:
            return
        self._frames = int(world.time_ns * self.settings.camera_hz / 1e9 + 1e-6) + 1
        age_ns = world.time_ns - self._picture_ns
        if self.settings.whole or world.time_ns == 0:
            self.camera.draw(world, self.stamp_ns, wait=True)
        elif (self.counters.lag_ns > BEHIND_NS and age_ns < PICTURE_AGE_NS) or not self.camera.draw(
            world, self.stamp_ns
        ):
            self.counters.left_out += 1
            return
        self._picture_ns = world.time_ns


def _raise(sentence: str) -> None:
    raise SimError(sentence)
