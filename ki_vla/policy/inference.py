"""A bundle ready to run, without ROS: an observation in, a chunk out.

policy = load_policy('bundles/demo')
chunk_HN = policy.act(images, state, 'put the red cube into the left bin')
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ki_robot.contract.contract import Contract
from ki_robot.messages.images import Image
from ki_robot.observation.observation import Observation
from ki_vla.engine.interface import Carry, Engine
from ki_vla.engine.select import open_engine
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Decode
from ki_vla.policy.subtasks import SubtaskGenerator

SEED_STRIDE = 1_000_003  # between the noises of two seeds at one stamp


class LoadedPolicy:
    """Processor, engine and, where the policy has two levels, its subtasks. Use it from one thread; close it.

    The noise is drawn from `seed` and the stamp of the state: the same stamps give the same chunks, live or from a bag.

    Args:
        bundle: Which policy.
        engine: What runs it; closed with the policy.
        seed: Of the noise.
    """

    def __init__(self, bundle: Bundle, engine: Engine, seed: int = 0) -> None:
        self.bundle, self.engine = bundle, engine
        self.contract = bundle.contract
        self.policy_id = bundle.policy_id
        self.backend = str(engine.choice.backend)
        self._seed = seed
        self._subtasks = SubtaskGenerator(bundle)

    def __enter__(self) -> LoadedPolicy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def act(
        self, images: Mapping[str, Image], state: ArrayLike, instruction: str, *, stamp_ns: int = 0
    ) -> NDArray[np.float64]:
        """One chunk, (H, N): absolute SI values of `contract.action_names`, one row every `contract.step_ns`.

        Args:
            images: uint8 RGB (height, width, 3) of any size, by camera name of the contract.
            state: (S,), SI, in the order of `contract.state_names`.
            instruction: What to do.
            stamp_ns: When the state was measured; another stamp draws other noise.

        Raises:
            VlaError: a required camera is missing, the state has another width or is not finite, no instruction.
        """
        values = np.asarray(state, dtype=np.float64)
        stamps = dict.fromkeys(images, stamp_ns)
        return self.infer(Observation(stamp_ns, dict(images), stamps, values, stamp_ns, instruction)).data_HN

    def infer(self, observation: Observation, carry: Carry | None = None) -> Inferred:
        """One chunk and its times.

        Args:
            observation: Of the contract's robot.
            carry: The chunk that is being executed, which the new one continues; see `Processor.carried`.

        Raises:
            VlaError: as `act`.
        """
        times = [time.perf_counter_ns()]
        subtask = self._subtasks.next(observation.images, observation.state, observation.instruction)
        times.append(time.perf_counter_ns())
        processor = self.bundle.processor
        inputs = processor.observe(observation, subtask)
        times.append(time.perf_counter_ns())
        seed = (self._seed * SEED_STRIDE + observation.state_stamp_ns) % 2**63
        model_HA = self.engine.infer(inputs, seed=seed, carry=carry)
        times.append(time.perf_counter_ns())
        data_HN = processor.actions(model_HA, observation.state, said=self.engine.tokens is not None)
        times.append(time.perf_counter_ns())
        words_ns, before_ns, model_ns, after_ns = (late - early for early, late in pairwise(times))
        return Inferred(data_HN, before_ns, words_ns + model_ns, after_ns, subtask)

    def warm_up(self, kinds: tuple[str, ...] = ('plain',)) -> None:
        """Runs every static shape of the engine, in these ways of denoising, until the next chunk is as fast as any."""
        self.engine.warm_up(kinds)
        self._subtasks.warm_up()

    def close(self) -> None:
        """Frees the engine."""
        self.engine.close()


def load_policy(
    folder: str | Path,
    backend: str = 'auto',
    *,
    robot: Contract | None = None,
    strict: bool = False,
    threads: int = 0,
    seed: int = 0,
    denoise_steps: int = 0,
    allow_untrained: bool = False,
    decode: Decode | None = None,
) -> LoadedPolicy:
    """A bundle ready to run.

    Args:
        folder: The bundle.
        backend: auto, torch, onnx or tensorrt.
        robot: Refused by field when the bundle was made for another one; None takes the bundle's own.
        strict: Refuse to run on another backend than the one asked for.
        threads: Of an engine on the CPU; 0: its own choice.
        seed: Of the noise.
        denoise_steps: From noise to actions; 0: what the bundle recommends. One gives the mean of what the policy would
            do, more give one of the things that it would do.
        allow_untrained: Take a bundle whose action head no training step has reached.
        decode: `actions` of the action head, or `tokens` that the backbone says; None: what the bundle recommends.

    Raises:
        VlaError: the bundle is damaged, untrained, does not fit the robot, or the backend cannot run it.
    """
    bundle = load_bundle(folder)
    if robot is not None:
        bundle.check(robot)
    if not allow_untrained:
        bundle.check_trained()
    engine = open_engine(bundle, backend, strict=strict, threads=threads, steps=denoise_steps or None, decode=decode)
    return LoadedPolicy(bundle, engine, seed)
