"""A trained bundle as the node's policy: processor and engine, and the old chunk carried into the new one."""

from __future__ import annotations

import logging
import time
from itertools import pairwise
from pathlib import Path

from ki_policy_node.policy.continuation import Timing
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.engine.interface import Carry, Engine
from ki_vla.engine.select import open_engine
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.subtasks import SubtaskGenerator

log = logging.getLogger(__name__)


class BundlePolicy:
    """A bundle ready to run.

    Args:
        folder: The bundle.
        backend: auto, torch, onnx or tensorrt.
        robot: Refused by field when the bundle was made for another one; None takes the bundle's own.
        timing: Whether, and how far, a chunk is continued.
        strict: Refuse to run on another backend than the one asked for.
        threads: Of an engine on the CPU; 0: its own choice.
        seed: Of the noise. It is mixed with the stamp of the state, so that the same stamps give the same chunks, live
            and from a bag.
        denoise_steps: From noise to actions; 0: what the bundle recommends. One gives the mean of what the policy would
            do, more give one of the things that it would do.
        allow_untrained: Take a bundle whose action head no training step has reached.

    Raises:
        VlaError: the bundle is damaged, untrained, does not fit the robot, or the backend cannot run it.
    """

    def __init__(
        self,
        folder: Path,
        backend: str,
        robot: Contract | None,
        timing: Timing,
        strict: bool = False,
        threads: int = 0,
        seed: int = 0,
        denoise_steps: int = 0,
        allow_untrained: bool = False,
    ) -> None:
        self._bundle: Bundle = load_bundle(folder)
        self.contract = self._bundle.contract
        if robot is not None:
            self._bundle.check(robot)
        if not allow_untrained:
            self._bundle.check_trained()
        self.policy_id = self._bundle.policy_id
        self._timing, self._seed = timing, seed
        self._engine: Engine = open_engine(
            self._bundle, backend, strict=strict, threads=threads, steps=denoise_steps or None
        )
        self._speaker = SubtaskGenerator(self._bundle)
        self.backend = str(self._engine.choice.backend)
        self._carry, self._beyond = self._way_to_carry(), False

    def warm_up(self) -> None:
        """Runs every static shape of the engine, in every way that will be used."""
        kinds = ('plain', self._carry) if self._carry else ('plain',)
        self._engine.warm_up(kinds)
        self._speaker.warm_up()

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk; see `inference.Policy`."""
        times = [time.perf_counter_ns()]
        subtask = self._speaker.next(observation.images, observation.state, observation.instruction)
        times.append(time.perf_counter_ns())
        processor = self._bundle.processor
        inputs = processor.observe(observation, subtask)
        carry = self._carried(prefix_KN, observation, delay_steps)
        times.append(time.perf_counter_ns())
        seed = (self._seed * 1_000_003 + observation.state_stamp_ns) % 2**63
        model_HA = self._engine.infer(inputs, seed=seed, carry=carry)
        times.append(time.perf_counter_ns())
        data_HN = processor.actions(model_HA, observation.state)
        times.append(time.perf_counter_ns())
        words_ns, before_ns, model_ns, after_ns = (late - early for early, late in pairwise(times))
        return Inferred(data_HN, before_ns, words_ns + model_ns, after_ns)

    def close(self) -> None:
        """Frees the engine."""
        self._engine.close()

    def _way_to_carry(self) -> str:
        """`trained` for a model trained with delays, else `guided` where the engine has gradients, else none."""
        if self._timing.mode != 'rtc':
            return ''
        for kind in ('trained', 'guided') if self._bundle.serving.max_delay else ('guided',):
            if kind in self._engine.kinds:
                return kind
        return ''

    def _carried(self, prefix_KN: Matrix | None, observation: Observation, delay: int) -> Carry | None:
        """The old chunk as the model would say it now; its end is where nothing is pulled any more, H - s."""
        if prefix_KN is None or not self._carry:
            return None
        rows = len(prefix_KN)
        end = min(rows, max(delay, self.contract.horizon - self._timing.execute_steps))
        if delay > rows or (self._carry == 'trained' and not self._is_trained_for(delay)):
            return None
        previous_PA = self._bundle.processor.carried(prefix_KN, observation.state)
        return Carry(previous_PA, delay=delay, end=end, mode=self._carry)

    def _is_trained_for(self, delay: int) -> bool:
        """Whether the model can continue over a delay; says so when it begins not to, and when it can again."""
        most = self._bundle.serving.max_delay
        beyond = delay > most
        if beyond != self._beyond:
            self._beyond = beyond
            if beyond:
                log.warning(
                    'The delay of %d steps is beyond the %d that %s was trained to continue over (serving.max_delay): '
                    'chunks are not continued but spliced, as in mode latest.', delay, most, self.policy_id,
                )  # fmt: skip
            else:
                log.warning('The delay is within the %d trained steps again: chunks are continued.', most)
        return 0 < delay <= most
