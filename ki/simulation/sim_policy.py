"""The node's policy cycle on the simulator's clock: `ki eval sim` in one process, without ROS.

Chunks are planned, joined and dropped as on a robot; only time stands still while the policy thinks, and passes by
`delay_steps` afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ki_robot.observation.observation import NotReady, Observation, StreamProblem

if TYPE_CHECKING:
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.cycle.policy_cycle import Made, Ready
    from ki_policy_node.cycle.policy_types import Policy
    from ki_robot.actions.chunk import ActionChunk
    from ki_robot.contract.contract import Contract
    from ki_sim.world.world import SimObservation
    from ki_vla.policy.serving import Decode

Row = NDArray[np.float64]
SOLVED_AHEAD = 12  # steps of a chunk of hand poses; few are carried out before the next plan, and the others cost time
MEASURED = -1  # in place of steps of delay: an inference takes as long as it takes here


def open_sim_policy(
    bundle: Path,
    backend: str,
    seed: int,
    mode: str,
    execute_steps: int,
    delay_steps: int,
    decode: Decode | Literal[''] = '',
    denoise_steps: int = 0,
) -> ClosedLoopPolicy:
    """A bundle for the simulated robot.

    Args:
        bundle: Its folder.
        backend: auto, torch, onnx or tensorrt.
        seed: Of the noise.
        mode: How chunks follow each other.
        execute_steps: Steps of a chunk after which the next is planned.
        delay_steps: How many steps an inference is thought to take, or `MEASURED`.
        decode: Where actions come from; '' is what the bundle recommends.
        denoise_steps: From noise to actions; 0: what the bundle recommends.

    Raises:
        KiError: the bundle cannot be opened, or the timing does not fit its horizon.
    """
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.policy.backends import Wanted, open_policy
    from ki_robot.contract.contract import load_contract
    from ki_vla.policy.inference import SEED_STRIDE

    timing = Timing(mode, execute_steps)
    # A stamp is above 0, and the noise of a stamp is that of a stride later under the seed before: an episode that
    # begins one stride after 0 has the noise of its own times.
    robot = load_contract(simulated_robot(bundle))
    wanted = Wanted(
        backend, str(bundle), seed=seed - 1, denoise_steps=denoise_steps, allow_untrained=True, decode=decode
    )
    policy = open_policy(wanted, robot, timing)
    return ClosedLoopPolicy(policy, timing, delay_steps, begin_ns=SEED_STRIDE)


def simulated_robot(bundle: Path | None) -> str:
    """The contract of the simulated robot that a bundle was trained for: by joints, or by the poses of its hands."""
    from ki_sim.record.sim_bags import HANDS_ROBOT, ROBOT, ROBOTS
    from ki_vla.policy.bundle import load_bundle

    if bundle is None:
        return ROBOT
    contract = load_bundle(bundle, verify=False).contract
    if contract.name in ROBOTS:
        return contract.name
    return HANDS_ROBOT if contract.hands else ROBOT


@dataclass(frozen=True, eq=False)
class _Solved:
    """The first steps of a chunk as the simulator's columns (steps, 17), solved from commands (R,) at a first step."""

    chunk: ActionChunk
    start: Row
    first: int
    rows: Row


class SimRobotColumns:
    """The simulator's columns, as a policy of it sees them, and its chunks as the simulator takes them.

    Args:
        contract: Of the policy.
    """

    def __init__(self, contract: Contract) -> None:
        from ki_robot.space.robot_space import RobotSpace
        from ki_sim.world.robot import COLUMNS, EFFORTS

        self._space, self._count = RobotSpace(contract), len(COLUMNS)
        self._measured = [(*COLUMNS, *EFFORTS).index(name) for name in contract.robot.state_names]
        self._commanded = [COLUMNS.index(name) for name in contract.robot.action_names]
        self._solved: _Solved | None = None
        self._row: Row | None = None  # what it was told last, else what it senses

    def state(self, sensed: SimObservation) -> Row:
        """What the policy sees of the simulator's columns."""
        self._row = sensed.state if self._row is None else self._row
        efforts = [joint.effort for joint in sensed.joints.values()]
        return self._space.state(np.concatenate([sensed.state, efforts])[self._measured])

    def row(self, chunk: ActionChunk, step: int) -> Row:
        """What the simulator is told (17,) at one step of a chunk, which is solved from what it was told before."""
        step = max(step, 0)
        if self._solved is None or self._solved.chunk is not chunk:
            assert self._row is not None  # a chunk answers to an observation
            self._solved = self._solve(chunk, self._row[self._commanded], step, step + SOLVED_AHEAD)
        elif step >= len(self._solved.rows):
            self._solved = self._solve(chunk, self._solved.start, self._solved.first, chunk.horizon)
        self._row = self._solved.rows[step]
        return self._row

    def _solve(self, chunk: ActionChunk, start: Row, first: int, end: int) -> _Solved:
        """The steps before `end`; each is solved from those before it alone, so where it ends changes none."""
        made, _ = self._space.chunk(replace(chunk, data_HN=chunk.data_HN[:end]), start, first)
        rows = np.zeros((made.horizon, self._count))  # a base that no column commands stands still
        rows[:, self._commanded] = made.columns(self._space.robot.action_names)
        return _Solved(chunk, start, first, rows)


class SimObservations:
    """What the simulator shows, as the policy cycle asks for it: always complete, rendered only when it is looked at.

    Args:
        begin_ns: The cycle's time at which an episode begins.
        columns: Of the policy.
        cameras: That the policy looks through.
    """

    def __init__(self, begin_ns: int, columns: SimRobotColumns, cameras: tuple[str, ...]) -> None:
        self.epoch = 0
        self.sense: Callable[[], SimObservation] | None = None
        self._begin_ns, self._columns, self._cameras = begin_ns, columns, cameras

    def sample(self, now_ns: int) -> Observation | NotReady:
        """The robot and its cameras now; the words are those of the episode."""
        assert self.sense is not None
        sensed = self.sense()
        stamp_ns = self._begin_ns + sensed.time_ns
        images = {name: image for name, image in sensed.images.items() if name in self._cameras}
        stamps = dict.fromkeys(images, stamp_ns)
        state = self._columns.state(sensed)
        return Observation(stamp_ns, images, stamps, state, stamp_ns, sensed.instruction)

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        """None ever."""
        return ()

    def decode(self, names: Iterable[str]) -> None:
        """Nothing is encoded."""

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        """The words come with every observation."""

    def flush(self) -> None:
        """Nothing is kept."""


class ClosedLoopPolicy:
    """A policy of `ki_sim.evaluate.closed_loop`: one row of commands a control step, from the node's policy cycle.

    Args:
        policy: Of the simulated robot.
        timing: How its chunks follow each other.
        delay_steps: How many control steps an inference is thought to take, or `MEASURED`: as long as it did take. The
            first chunk of an episode is awaited.
        begin_ns: The cycle's time at which an episode begins; above 0, as every stamp.
    """

    def __init__(self, policy: Policy, timing: Timing, delay_steps: int = 0, begin_ns: int = 1) -> None:
        from ki_policy_node.cycle.continuation import resolved
        from ki_policy_node.errors import NodeError

        horizon = policy.contract.horizon
        if delay_steps >= horizon:
            raise NodeError(
                f'--delay-steps is {delay_steps}; a chunk of {policy.policy_id} has {horizon} steps, and would be past '
                f'when it is there. Write at most {horizon - 1}.'
            )
        self._policy, self.timing = policy, resolved(timing, policy)
        self._delay_ns = None if delay_steps == MEASURED else delay_steps * policy.contract.step_ns
        self._begin_ns = begin_ns
        self.policy_id, self.cameras = policy.policy_id, policy.contract.camera_names
        self.reset()

    def reset(self) -> None:
        """An episode begins; nothing of the one before is remembered."""
        from ki_policy_node.cycle.continuation import Planner
        from ki_policy_node.cycle.policy_cycle import PolicyCycle

        self._columns = SimRobotColumns(self._policy.contract)
        self._scene = SimObservations(self._begin_ns, self._columns, self.cameras)
        planner = Planner(self._policy, self.timing)
        self._cycle = PolicyCycle(self._policy.contract, self._scene, planner, frame_wait_ns=0)
        self._cycle.begin(self._begin_ns)
        self._coming: tuple[int, Made] | None = None

    def next_row(self, time_ns: int, observe: Callable[[], SimObservation]) -> Row | None:
        """What the simulator is told (17,) at an episode's time; None while the robot is to stand still.

        Raises:
            SimError: the policy failed as often as ends a run of the node.
        """
        from ki_policy_node.cycle.policy_cycle import Ready
        from ki_sim.errors import SimError

        now_ns = self._begin_ns + time_ns
        self._scene.sense = observe
        self._arrive(now_ns)
        self._cycle.watch(now_ns)
        if self._coming is None:
            found = self._cycle.look(now_ns)
            if isinstance(found, Ready):
                self._coming = self._made(found, now_ns)
                self._arrive(now_ns)
        if self._cycle.fault:
            raise SimError(self._cycle.fault)
        chunk = self._cycle.planner.current
        return None if chunk is None else self._columns.row(chunk, chunk.index_at(now_ns))

    def _made(self, found: Ready, now_ns: int) -> tuple[int, Made]:
        """A new chunk, and the time at which it is there."""
        moves, began = self._cycle.planner.current is not None, time.perf_counter_ns()
        arrivals: list[int] = []

        def arrival() -> int:
            if not arrivals:
                took = time.perf_counter_ns() - began if self._delay_ns is None else self._delay_ns
                arrivals.append(now_ns + (took if moves else 0))
            return arrivals[0]

        made = self._cycle.plan(found, arrival)
        return arrival(), made

    def _arrive(self, now_ns: int) -> None:
        """What was being made is there, if its time has come."""
        if self._coming is not None and self._coming[0] <= now_ns:
            made, self._coming = self._coming[1], None
            self._cycle.commit(made, now_ns)

    def close(self) -> None:
        """Frees the engine."""
        self._policy.close()
