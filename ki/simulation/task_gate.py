"""Whether a policy in a smaller precision still does its task: what `ki export` asks before it writes int8 or fp8.

Closeness of numbers is not enough: quantised policies with a cosine of 0.99 and better have lost half of their
successes. A policy of the simulated robot plays the same scenes twice, as it was trained and as it was exported; any
other one is compared with what a recording commanded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki_common.errors import KiError

if TYPE_CHECKING:
    from ki_vla.engine.interface import Engine
    from ki_vla.policy.bundle import Bundle

GATED = ('int8', 'fp8')
FIRST_SEED = 1_000_000  # of the scenes; no recording uses seeds this high
CHANCE = 0.05  # scenes lost and won alike would look as bad as this less often
MOST_LOST = 0.1  # share of the scenes by which successes may fall
MOST_WORSE = 1.05  # factor by which the error on a recording may grow


@dataclass(frozen=True)
class Trial:
    """What is asked for.

    Attributes:
        scenes: how many are played, of all tasks together; 0 leaves the comparison out, which is written down.
        tasks: of the simulator; none: those that the policy was trained on.
        bag: a recording, for a policy of another robot.
    """

    scenes: int = 50
    tasks: tuple[str, ...] = ()
    bag: Path | None = None


def compared(bundle: Bundle, exported: Engine, trial: Trial, tell: Callable[[str], None]) -> dict[str, Any]:
    """The policy as it was trained against an engine of its export; plain data for the bundle.

    Args:
        bundle: of which policy.
        exported: the engine; the caller closes it.
        trial: scenes or a recording.
        tell: called with a line now and then.

    Raises:
        KiError: the task suffers, nothing can be compared, or the policy never does its task.
    """
    from ki.simulation.sim_evaluation import trained_tasks
    from ki_vla.engine.select import open_engine

    if trial.bag is None and trial.scenes == 0:
        return {'compared': 'nothing, as asked'}
    with open_engine(bundle, 'torch', device='cpu', precision='fp32') as trained:
        if trial.bag is not None:
            tell('replaying the recording with the policy as it was trained, then as it was exported')
            first, second = (error_on(bundle, engine, trial.bag) for engine in (trained, exported))
            return on_recording(first, second, trial.bag)
        if not is_simulated(bundle):
            raise KiError(
                f'{bundle.policy_id} is for robot {bundle.contract.name}, which the simulator does not have; name a '
                'recording of it: --compare-on BAG.'
            )
        tasks = trial.tasks or tuple(trained_tasks(bundle.folder))
        named = ', '.join(tasks)
        tell(f'playing {trial.scenes} scenes of {named} with the policy as it was trained')
        before = play(bundle, trained, tasks, trial.scenes)
        check_does_it(before, named)
        tell(f'{sum(before)} of {len(before)}; the same scenes as it was exported')
        return in_scenes(before, play(bundle, exported, tasks, trial.scenes), named)


def in_scenes(before: Sequence[bool], after: Sequence[bool], task: str) -> dict[str, Any]:
    """The verdict on scenes that were played twice.

    Raises:
        KiError: too many are lost.
    """
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    won = sum(b and not a for a, b in zip(before, after, strict=True))
    found = {
        'task': task, 'scenes': len(before), 'before': sum(before), 'after': sum(after), 'lost': lost, 'won': won,
        'chance': round(chance(lost, won), 4),
    }  # fmt: skip
    said = f'task {task}: {sum(before)} of {len(before)} scenes succeed as trained, {sum(after)} as exported'
    fallen = sum(before) - sum(after)
    if fallen > MOST_LOST * len(before) or (fallen > 0 and chance(lost, won) < CHANCE):
        raise KiError(f'{said} ({lost} lost, {won} won); choose a higher precision.')
    return found


def check_does_it(before: Sequence[bool], task: str) -> None:
    """Refuses a policy with nothing to lose, before its export is played.

    Raises:
        KiError: no scene succeeded.
    """
    if not any(before):
        raise KiError(
            f'task {task}: 0 of {len(before)} scenes succeed as trained, so nothing can be compared; name a --task '
            'that it was trained for, or --compare-on a bag.'
        )


def chance(lost: int, won: int) -> float:
    """How often as many or more of the scenes that came out differently would be lost, were both equally likely."""
    n = lost + won
    return float(sum(math.comb(n, k) for k in range(lost, n + 1)) / 2**n)


def on_recording(before: float, after: float, bag: Path) -> dict[str, Any]:
    """The verdict on mean absolute errors to recorded commands.

    Raises:
        KiError: the export errs by more than `MOST_WORSE` of what it did.
    """
    if after > MOST_WORSE * before:
        raise KiError(
            f'{bag}: the mean error of the policy is {before:.5g} as trained and {after:.5g} as exported, above '
            f'{MOST_WORSE} times; choose a higher precision.'
        )
    return {'bag': bag.name, 'before': round(before, 6), 'after': round(after, 6)}


def is_simulated(bundle: Bundle) -> bool:
    """Whether a bundle fits the simulated robot."""
    from ki.simulation.sim_policy import simulated_robot
    from ki_robot.contract.contract import load_contract

    return not bundle.contract.mismatches(load_contract(simulated_robot(bundle.folder)))


def play(bundle: Bundle, engine: Engine, tasks: Sequence[str], scenes: int) -> list[bool]:
    """Whether each scene succeeds, in closed loop, tasks in turn; the noise is the same for every engine.

    Raises:
        KiError: every scene of a task ended with an error.
    """
    from ki.simulation.sim_evaluation import camera_size
    from ki.simulation.sim_policy import ClosedLoopPolicy
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.policy.bundle_policy import BundlePolicy
    from ki_sim.evaluate.closed_loop import EvaluationSettings, evaluate
    from ki_vla.policy.inference import SEED_STRIDE, LoadedPolicy

    timing = Timing('auto', 0)
    policy = BundlePolicy(LoadedPolicy(bundle, engine, seed=-1), timing)
    loop = ClosedLoopPolicy(policy, timing, begin_ns=SEED_STRIDE)
    settings = EvaluationSettings(image_size=camera_size(bundle.folder))
    found: list[bool] = []
    for place, task in enumerate(tasks):
        seeds = range(FIRST_SEED + place, FIRST_SEED + scenes, len(tasks))
        report = evaluate(loop, task, seeds, settings)
        report.refuse_broken()
        found += [outcome.success for outcome in report.outcomes]
    return found


def error_on(bundle: Bundle, engine: Engine, bag: Path) -> float:
    """Mean absolute error to the commands of a recording.

    Raises:
        KiError: no command was recorded.
    """
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.policy.bundle_policy import BundlePolicy
    from ki_policy_node.replay.comparison import POLICY, compare
    from ki_policy_node.replay.replay import ReplayOptions, replay
    from ki_vla.policy.inference import LoadedPolicy

    timing = Timing('latest', 0)  # each chunk answers to its observation alone
    policy = BundlePolicy(LoadedPolicy(bundle, engine), timing)
    error = compare(replay(bag, bundle.contract, policy, ReplayOptions(timing)))['error'].get(POLICY)
    if not isinstance(error, float):
        raise KiError(f'{bag}: no command was recorded that the policy could be compared with; name another.')
    return error
