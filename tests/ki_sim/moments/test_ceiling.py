"""What labels are worth: carried out as the chunks of a policy are, through hand poses, they do the task."""

from __future__ import annotations

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_robot.space.robot_space import RobotSpace
from ki_sim.expert.laws import Rest, roll
from ki_sim.expert.reactive_expert import hand_of, look
from ki_sim.expert.situation import duty
from ki_sim.moments.columns import MomentColumns
from ki_sim.world.robot import COLUMNS, SIDES

EXECUTED = 8  # steps of a chunk that are carried out


@pytest.mark.parametrize(('task', 'seed'), [('put_in_bin', 2), ('stack', 4), ('push', 3), ('touch', 1)])
def test_labels_carried_out_as_chunks_do_the_task(blind_world, arms, task: str, seed: int) -> None:
    contract = load_contract('bimanual_hands')
    space, columns = RobotSpace(contract), MomentColumns(contract.state_names, contract.action_names)
    measured = [COLUMNS.index(name) for name in space.robot.state_names]
    commanded = [COLUMNS.index(name) for name in space.robot.action_names]
    world, held = blind_world(task, seed), 0
    while world.time_ns < world.episode.limit_s * 1e9 and held < 5:
        found, sensed = duty(look(world, arms)), world.observe(images=False).state
        hands = {side: hand_of(world, arms, found, side) for side in SIDES}
        laws = {side: found.law if side == found.side else Rest(side) for side in SIDES}
        commands = {side: roll(laws[side], hands[side], EXECUTED)[0] for side in SIDES}
        assert np.allclose(
            columns.state(hands, {s: np.zeros(6) for s in SIDES}, dict.fromkeys(SIDES, 0.0)),
            space.state(sensed[measured]),
            atol=1e-3,
        )
        actions = columns.actions(commands, {}, arms)
        rows = np.zeros((EXECUTED, len(COLUMNS)))
        rows[:, commanded] = space.solve(actions, sensed[commanded]).commands_HN
        for row in rows:
            world.step(row)
            held = held + 1 if world.success() else 0
    assert world.success()
