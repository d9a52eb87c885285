"""A bundle as a policy of the simulator, in the simulator's own process and without ROS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class ClosedLoopPolicy:
    """Observation of the simulator -> chunk of absolute values (H, 17), through the bundle's processor and engine.

    The noise is drawn from `seed` and the observation's time, so an episode is the same each time it is evaluated.
    """

    def __init__(self, folder: Path, backend: str = 'auto', seed: int = 0) -> None:
        from ki_robot.contract.contract import load_contract
        from ki_sim.record.sim_bags import ROBOT
        from ki_vla.engine.select import open_engine
        from ki_vla.policy.bundle import load_bundle
        from ki_vla.policy.subtasks import SubtaskGenerator

        self._bundle = load_bundle(folder)
        self._bundle.check(load_contract(ROBOT))
        self._engine = open_engine(self._bundle, backend)
        self._speaker = SubtaskGenerator(self._bundle)
        self._seed = seed
        self.policy_id = self._bundle.policy_id

    def __call__(self, observation: Any) -> np.ndarray:
        """One chunk from one observation."""
        processor = self._bundle.processor
        shown = (observation.images, observation.state, observation.instruction)
        inputs = processor.inputs(*shown, self._speaker.next(*shown))
        seed = (self._seed * 1_000_003 + observation.time_ns) % 2**63
        return processor.actions(self._engine.infer(inputs, seed=seed), observation.state)

    def close(self) -> None:
        """Free the engine."""
        self._engine.close()
