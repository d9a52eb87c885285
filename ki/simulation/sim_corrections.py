"""`ki sim correct`: a bundle in the simulator, an operator who takes over when it fails, and bags of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path


def correct(
    bundle: Path,
    out: Path,
    task: Sequence[str],
    episodes: int,
    first_seed: int,
    patience_s: float,
    keep_all: bool,
    led: bool,
    heldout: bool,
    backend: str,
    seed: int,
    say: Callable[[str], None],
) -> str:
    """Records, and says in one line what came of it; see the command for the arguments.

    Raises:
        KiError: the bundle cannot be opened, or no such task.
    """
    from ki.simulation.sim_evaluation import camera_size
    from ki.simulation.sim_policy import open_sim_policy, simulated_robot
    from ki_robot.contract.contract import load_contract
    from ki_sim.record.sim_bags import write_bag
    from ki_sim.record.takeover import Patience, human_steps, record_takeover
    from ki_sim.tasks.tasks import task_names
    from ki_sim.world.kinematics import Arms

    policy = open_sim_policy(bundle, backend, seed, 'auto', 0, 0)
    contract, arms, size = load_contract(simulated_robot(bundle)), Arms(), camera_size(bundle)
    split = 'heldout' if heldout else 'train'
    corrected = alone = failed = present = 0
    try:
        for name in task_names(list(task)):
            for number, scene in enumerate(range(first_seed, first_seed + episodes)):
                path = out / (f'{name}-{scene:06d}' + ('-heldout' if heldout else ''))
                if path.exists():
                    present += 1
                    continue
                made = record_takeover(
                    policy,
                    name,
                    scene,
                    Patience(patience_s),
                    size,
                    split=split,
                    arms=arms,
                    driver=policy.policy_id,
                    led=led,
                    cameras=contract.camera_names,
                )
                human = human_steps(made)
                corrected += human > 0 and made.success
                alone += human == 0 and made.success
                failed += not made.success
                if keep_all or (human > 0 and made.success):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_bag(made, path, number, contract)
                done = 'done' if made.success else 'failed'
                say(f'{name} {scene}: {done}, {human} of {len(made.frames)} steps by the operator')
    finally:
        policy.close()
    return f'{corrected} corrected, {alone} done by the policy alone, {failed} failed, {present} were there: {out}'
