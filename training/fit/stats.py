"""Normalisation statistics of a dataset.

Statistics are taken after the delta transform, over every known step of every chunk that training draws, so that they
describe exactly what is normalised. Letters: T steps, H horizon, S state columns, N action columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_common.parallel import run_all
from ki_robot.policy_values import policy_actions, policy_state
from ki_robot.transforms import Stats, Vector
from training.fit.quantiles import Running, RunningSteps
from training.samples.dataset import EpisodeDataset

BLOCK = 512  # episodes that are summarised together


@dataclass(frozen=True)
class Summary:
    """Statistics with what `training.doctor` needs besides: the extremes."""

    state: Stats
    actions: Stats
    state_low: NDArray[np.float64]
    state_high: NDArray[np.float64]
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]


def compute_stats(dataset: EpisodeDataset, workers: int = 1, ray: str = '') -> dict[str, Stats]:
    """`state` and `actions` of a dataset, with the provenance that a bundle carries; see `summarise`."""
    summary = summarise(dataset, workers, ray)
    return {'state': summary.state, 'actions': summary.actions}


@dataclass
class BlockSums:
    """What some episodes come to."""

    states: Running
    actions: Running
    by_step: RunningSteps


def summarise(dataset: EpisodeDataset, workers: int = 1, ray: str = '') -> Summary:
    """One pass over the numbers of a dataset; images are not touched.

    Args:
        dataset: What is summarised.
        workers: Processes that share the episodes; the numbers are the same with any number of them.
        ray: Address of a Ray cluster in place of processes, see `ki_common.parallel.run_all`.
    """
    contract, numbers = dataset.contract, dataset.episode_numbers
    blocks = [dataset.only(numbers[first : first + BLOCK]) for first in range(0, len(numbers), BLOCK)]
    found: dict[int, BlockSums] = {}
    with contextlib.closing(run_all(part_of, blocks, workers, ray)) as results:
        for place, result in results:
            if isinstance(result, Exception):
                raise result
            found[place] = result
    # In the order of the episodes, whoever was first.
    whole = found[0]
    for place in range(1, len(blocks)):
        whole.states.merge(found[place].states)
        whole.actions.merge(found[place].actions)
        whole.by_step.merge(found[place].by_step)
    states, actions, by_step = whole.states, whole.actions, whole.by_step
    origin = provenance(dataset)
    return Summary(
        state=_stats(contract.state_names, states, {**origin, 'units': [c.unit for c in contract.state]}),
        actions=_stats(
            contract.action_names,
            actions,
            {
                **origin,
                'units': [c.unit for c in contract.actions],
                'representation': [c.representation for c in contract.actions],
            },
            by_step,
        ),
        state_low=states.low,
        state_high=states.high,
        action_low=actions.low,
        action_high=actions.high,
    )


def with_moving(kept: Stats, data: Stats, moving: Collection[str]) -> Stats:
    """Statistics that stay, but as wide as the data in columns that began to move.

    Their centre stays too: a value that a policy knows as 0 is 0 still.
    """
    chosen = np.array([name in moving for name in kept.names])

    def spread(mean: Vector, std: Vector, new_mean: Vector, new_std: Vector) -> Vector:
        found: Vector = np.where(chosen, np.hypot(new_std, new_mean - mean), std)
        return found

    middle = (kept.q01 + kept.q99) / 2
    reach = np.maximum(np.abs(data.q01 - middle), np.abs(data.q99 - middle))
    by_step = kept.step_std_HN
    if by_step is not None and kept.step_mean_HN is not None:
        mean, std = data.step_mean_HN, data.step_std_HN
        if mean is None or std is None or mean.shape != by_step.shape:  # of another horizon: each step as all
            mean, std = (np.broadcast_to(each, by_step.shape) for each in (data.mean, data.std))
        by_step = spread(kept.step_mean_HN, by_step, mean, std)
    return replace(
        kept,
        std=spread(kept.mean, kept.std, data.mean, data.std),
        q01=np.where(chosen, middle - reach, kept.q01),
        q99=np.where(chosen, middle + reach, kept.q99),
        step_std_HN=by_step,
        provenance={**kept.provenance, 'moving_since': data.provenance},
    )


def part_of(dataset: EpisodeDataset) -> BlockSums:
    """What the episodes of one block come to."""
    contract = dataset.contract
    found = BlockSums(
        Running(len(contract.state)),
        Running(len(contract.actions)),
        RunningSteps(dataset.horizon, len(contract.actions)),
    )
    for number, steps in dataset.starts_by_episode():
        arrays = dataset.arrays(number)
        found.states.update(policy_state(contract, arrays['state'][steps]))
        for begin in range(0, len(steps), 256):  # 256 chunks of 50 x 32 float64 are 3 MB
            chunks_nHN, known_nH = _chunks(dataset, number, steps[begin : begin + 256])
            found.actions.update(chunks_nHN[known_nH])
            found.by_step.update(chunks_nHN, known_nH)
    dataset.forget()  # in this process, the blocks that are done stay
    return found


def provenance(dataset: EpisodeDataset) -> dict[str, Any]:
    """Which data a statistic is of."""
    index = dataset.index
    used = [index.episodes[number] for number in dataset.episode_numbers]
    bags = {entry.sha256: entry.path for entry, _ in used}
    return {
        'data_hash': index.hash,
        'contract': index.contract.name,
        'contract_hash': index.contract.hash,
        'bags': [{'name': path.rpartition('/')[2], 'sha256': digest} for digest, path in sorted(bags.items())],
        'episodes': len(used),
        'samples': len(dataset),
        'horizon': dataset.horizon,
        'rate_hz': index.contract.rate_hz,
    }


def _chunks(
    dataset: EpisodeDataset, number: int, steps: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The chunks that begin at `steps`, as the policy says them (n, H, N), and which of their steps are known."""
    actions, known = dataset.chunks(number, steps)
    chunks = policy_actions(dataset.contract, actions, dataset.arrays(number)['state'][steps])
    return np.asarray(chunks, dtype=np.float64), known


def _stats(
    names: tuple[str, ...], running: Running, origin: dict[str, Any], by_step: RunningSteps | None = None
) -> Stats:
    low, high = running.quantile(0.01), running.quantile(0.99)
    return Stats(
        names=names,
        mean=running.mean,
        std=running.std,
        q01=low,
        q99=np.maximum(low, high),
        count=running.count,
        provenance={**origin, 'quantile_error': float(running.resolution.max(initial=0.0))},
        step_mean_HN=None if by_step is None else by_step.mean_HN,
        step_std_HN=None if by_step is None else by_step.std_HN,
    )
