"""An untrained policy for any robot: a whole bundle with random weights. For dry runs and tests, never for motion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import ActionColumn, StateColumn
from ki_robot.policy_values import mapped_values
from ki_robot.transforms import Stats
from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.tokens.fast import fit
from ki_vla.tokens.tokenizer import train_tokenizer

SENTENCES = (
    'Task: pick up the red block, State: 0 17 128 255;\nAction: ',
    'Task: put the green block on the blue plate, State: 31 99 203;\nAction: ',
    'what is on the table?\n',
    'the red block is left of the green block.',
)
ACTION_TOKENS = 512


def untrained_processor(
    contract: Contract, config: ModelConfig | None = None, processing: Processing | None = None, seed: int = 0
) -> Processor:
    """A processor for a robot: statistics spread over its limits, a small tokenizer, FAST fitted on random walks.

    Args:
        contract: the robot.
        config: the model; unless given, `tiny` stretched to the robot's columns, cameras and horizon.
        processing: the policy's choices.
        seed: of the random walks.
    """
    config = config or tiny_for(contract)
    tokenizer = train_tokenizer(SENTENCES, size=config.vocab_size, action_size=ACTION_TOKENS)
    rng = np.random.default_rng(seed)
    steps = rng.normal(0.0, 0.1, (64, config.horizon, len(contract.actions)))
    codec = fit(list(np.clip(np.cumsum(steps, axis=1), -1.5, 1.5)), size=ACTION_TOKENS)
    state_stats, action_stats = (_spread(columns) for columns in (contract.state, contract.actions))
    return Processor(contract, state_stats, action_stats, tokenizer, codec, config, processing or Processing())


def tiny_for(contract: Contract) -> ModelConfig:
    """The `tiny` preset with room for a robot's columns, cameras and horizon."""
    return preset(
        'tiny',
        horizon=contract.horizon,
        action_dim=len(contract.actions),
        state_dim=len(contract.state),
        views=len(contract.cameras),
        max_prompt=64 + 5 * len(contract.state),
        max_targets=contract.horizon * len(contract.actions) + 16,
    )


def write_untrained(folder: str | Path, contract: Contract, seed: int = 0, overwrite: bool = False) -> Bundle:
    """Write an untrained bundle for a robot; its name says that it is untrained."""
    processor = untrained_processor(contract, seed=seed)
    model = initialise(KiVla(processor.config), torch.Generator().manual_seed(seed))
    note = {'note': 'random weights; for dry runs and tests only', 'trained': []}
    return write_bundle(
        folder, name='untrained', weights=model, processor=processor, provenance=note, overwrite=overwrite
    )


def _spread(columns: Sequence[StateColumn | ActionColumn]) -> Stats:
    """Statistics of columns that go evenly from their lower to their upper limit (-1 and 1 where there is none)."""
    least = np.array([-1.0 if c.limits.lower is None else c.limits.lower for c in columns])
    most = np.array([1.0 if c.limits.upper is None else c.limits.upper for c in columns])
    ends = mapped_values(columns, np.stack([least, most]))
    lower, upper = ends.min(axis=0), ends.max(axis=0)
    return Stats(
        names=tuple(column.name for column in columns),
        mean=(lower + upper) / 2.0,
        std=(upper - lower) / np.sqrt(12.0),
        q01=lower,
        q99=upper,
        count=1,
        provenance={'note': 'from limits, not from data'},
    )
