"""What a policy of the simulated robot is shown in scenes of its tasks."""

from __future__ import annotations

from itertools import groupby, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ki_vla.policy.bundle import Bundle
    from ki_vla.policy.model_inputs import ModelInputs

FIRST_SEED = 2_000_000  # of scenes that neither training nor evaluation sees
A_SCENE = 2  # observations of one scene


def simulated_inputs(bundle: Bundle, count: int) -> list[ModelInputs]:
    """Observations on, beside and off the way of the expert, in scenes of the tasks that the policy was trained on.

    Args:
        bundle: Of the policy.
        count: How many.

    Raises:
        KiError: no law does any of these tasks, or the columns are not the simulated robot's.
    """
    from ki.simulation.sim_evaluation import camera_size, trained_tasks
    from ki_common.errors import KiError
    from ki_sim.expert.situation import tasks_with_laws
    from ki_sim.moments.columns import MomentColumns
    from ki_sim.moments.maker import MomentMaker
    from ki_sim.tasks.tasks import Bias

    contract, processor = bundle.contract, bundle.processor
    tasks = [task for task in trained_tasks(bundle.folder) if task in tasks_with_laws()]
    if not tasks:
        raise KiError(f'{bundle.policy_id}: the simulator has no law for its tasks; name recordings of it: --bags.')
    columns = MomentColumns(contract.state_names, contract.action_names)
    maker = MomentMaker(columns, contract.horizon, contract.camera_names, camera_size(bundle.folder), Bias())
    made: list[ModelInputs] = []
    seed = FIRST_SEED
    while len(made) < count:
        moments = maker.moments(tasks[seed % len(tasks)], seed)
        pictures = (next(same) for _, same in groupby(moments, key=lambda moment: id(moment.images)))
        for moment in islice(pictures, A_SCENE):
            made.append(processor.inputs(moment.images, moment.state, moment.instruction, moment.subtask))
        seed += 1
    return made[:count]
