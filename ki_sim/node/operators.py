"""What drives the simulated robot over its topics: the expert as a teleoperator, and the expert's plan as a policy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_sim.evaluate.closed_loop import SETTLED_STEPS
from ki_sim.expert.experts import expert_steps
from ki_sim.expert.motions import ExpertStep
from ki_sim.record.sim_bags import SUBTASK, Sender
from ki_sim.tasks.episode import TaskEpisode
from ki_sim.world.kinematics import Arms
from ki_sim.world.robot import COLUMNS
from ki_sim.world.world import STEP_NS, World

Floats = npt.NDArray[np.float64]


class Teleoperator:
    """The expert behind the command topics: what it decides at a moment goes out at that moment.

    Args:
        sender: Publishes commands and subtasks.
        stamped: Trajectories begin at their stamp; else on arrival, which a late message survives.
        arms: Kinematics, made once.
    """

    def __init__(self, sender: Sender, stamped: bool, arms: Arms | None = None) -> None:
        self._sender, self._stamped, self._arms = sender, stamped, arms
        self._moves: Iterator[ExpertStep] | None = None
        self._subtask = ''

    def act(self, time_ns: int, world: World) -> bool:
        """The next move of the plan."""
        if self._moves is None:
            self._moves = expert_steps(world, self._arms)
        move = next(self._moves, None)
        if move is None:
            return False
        if move.subtask != self._subtask:
            self._subtask = move.subtask
            self._sender.text(SUBTASK, time_ns, '', move.subtask)
        self._sender.commands(time_ns, move.action, None if self._stamped else 0)
        return True


class PlanFollower:
    """A policy that knows the future: the expert's commands, rehearsed in a world of its own, as chunks.

    It speaks as the policy node does and sees nothing, so a world that goes another way than the rehearsal is not
    corrected: it proves a loop of executor, controllers and scoring, not a policy.

    Args:
        plan: Rehearsed rows, (T, 17) in robot.COLUMNS order.
        contract: Names and horizon of the chunks.
        send: Publishes a chunk.
        tell: Says every step whether it is running.
        followed: Whether the robot moves already; until then the plan waits at its beginning.
        every: Steps from one chunk to the next.
    """

    POLICY_ID = 'scripted expert'

    def __init__(
        self,
        plan: Floats,
        contract: Contract,
        send: Callable[[ActionChunk], None],
        tell: Callable[[bool], None],
        followed: Callable[[], bool],
        every: int = 10,
    ) -> None:
        self._rows, self._contract, self._send, self._tell, self._followed = plan, contract.robot, send, tell, followed
        self._every, self._step, self._count = every, 0, 0
        self._order = [COLUMNS.index(name) for name in self._contract.action_names]

    def act(self, time_ns: int, world: World) -> bool:
        """Another chunk when one is due; goes on a little beyond the plan, so that success can settle."""
        going = self._step < len(self._rows) + 2 * SETTLED_STEPS
        self._tell(going)
        if going and self._step % self._every == 0:
            self._count += 1
            self._send(self._chunk(time_ns))
        if self._followed():
            self._step += 1
        return going

    def _chunk(self, time_ns: int) -> ActionChunk:
        horizon = self._contract.horizon
        rest = self._rows[self._step : self._step + horizon]
        if len(rest) < horizon:
            still = self._rows[-1].copy()
            still[-3:] = 0.0
            rest = np.concatenate([rest, np.repeat(still[None], horizon - len(rest), axis=0)])
        return ActionChunk(
            start_ns=time_ns + STEP_NS,  # a row is where the robot is to be at the end of its step
            step_ns=STEP_NS,
            names=self._contract.action_names,
            data_HN=rest[:, self._order],
            observation_ns=time_ns,
            chunk_id=self._count,
            policy_id=self.POLICY_ID,
        )


def rehearse(episode: TaskEpisode, arms: Arms | None = None) -> Floats:
    """The expert's rows (T, 17) for an episode, from a world of its own without cameras."""
    with World(episode.task, episode.seed, cameras=(), episode=episode) as world:
        rows = []
        for move in expert_steps(world, arms):
            rows.append(move.action)
            world.step(move.action)
            if world.time_ns >= episode.limit_s * 1e9:
                break
    return np.array(rows)
