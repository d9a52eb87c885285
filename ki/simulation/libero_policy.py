"""A bundle on the LIBERO benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki.support.progress import progress
from ki_common.errors import KiError

if TYPE_CHECKING:
    from ki_robot.contract.contract import Contract
    from ki_sim.libero.rollout import Act
    from ki_vla.policy.inference import LoadedPolicy

KINDS = ['scene', 'wrist']


def evaluate_bundle(
    bundle: Path, suite: str, perturb: str, tasks: Sequence[int], episodes: int, execute_steps: int, workers: int,
    films: bool, backend: str, seed: int, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Plays a suite, and returns the summary that `report.json` holds, too.

    Raises:
        KiError: the policy is not one for LIBERO, no such suite, task or perturbation, or `out` holds another
            evaluation.
    """
    from ki_sim.libero.evaluate import evaluate_libero
    from ki_sim.libero.rollout import RolloutSettings
    from ki_sim.libero.suites import MAX_STEPS, suite_name, tasks_of
    from ki_vla.policy.inference import load_policy

    name = suite_name(suite, perturb)
    every = tasks_of(name)
    wrong = [number for number in tasks if number >= len(every)]
    if wrong:
        raise KiError(f'--task {wrong[0]}: {name} has the tasks 0 to {len(every) - 1}.')
    jobs = [(task, k) for task in every if not tasks or task.number in tasks for k in range(episodes)]
    with load_policy(bundle, backend) as policy:
        check_fits_libero(policy.contract, execute_steps)
        settings = RolloutSettings(name, MAX_STEPS[suite], execute_steps, seed, films=out / 'films' if films else None)
        about = {'policy': policy.policy_id, 'suite': name, 'execute_steps': execute_steps, 'seed': seed}
        with progress(name, len(jobs)) as line:
            report = evaluate_libero(acting(policy), jobs, settings, out, about, workers, line.advance)
    return report.summary()


def acting(policy: LoadedPolicy) -> Act:
    """A bundle's policy as LIBERO asks it; the same moment of the same episode has the same noise.

    LIBERO's numbers are the policy's own: between them and SI lie the maps of the contract's columns.
    """
    from ki_robot.policy_values import mapped_values, si_values

    contract = policy.contract
    scene, wrist = contract.camera_names

    def act(seen: Any) -> Any:
        images, state = {scene: seen.scene, wrist: seen.wrist}, si_values(contract.state, seen.state)
        chunk = policy.act(images, state, seen.instruction, stamp_ns=seen.moment)
        return mapped_values(contract.actions, chunk)

    return act


def check_fits_libero(contract: Contract, execute_steps: int) -> None:
    """Refuse a policy for another robot.

    Raises:
        KiError: other columns, other cameras, or a chunk that is shorter than what is to be executed.
    """
    from ki_sim.libero.environment import ACTION_COLUMNS, STATE_COLUMNS

    kinds = [camera.kind for camera in contract.cameras]
    found = (len(contract.state), len(contract.actions), kinds)
    if found != (STATE_COLUMNS, ACTION_COLUMNS, KINDS):
        raise KiError(
            f'the policy is for {contract.name} ({found[0]} state columns, {found[1]} action columns, cameras '
            f'{", ".join(kinds)}); LIBERO has {STATE_COLUMNS}, {ACTION_COLUMNS}, and {", ".join(KINDS)}: train or '
            'import it with such a contract.'
        )
    if execute_steps > contract.horizon:
        raise KiError(f'--execute-steps is {execute_steps}; a chunk of this policy has {contract.horizon} steps.')
