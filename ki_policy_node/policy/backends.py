"""What can stand behind the node: a trained bundle, or a policy without a model for commissioning a robot."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ki_common.errors import KiError
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.cycle.policy_types import Policy
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.settings import BACKENDS
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of
from ki_robot.observation.observation import Observation
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Decode, Serving
from ki_vla.remote.remote_settings import RemoteSettings

COMMISSIONING, REMOTE = 'commissioning', 'remote'
MAX_PATH = 4096  # of Linux; resolving a longer one can take minutes
SPEED_SHARE = 0.5  # of a column's velocity limit: the most that a commissioning motion uses


@dataclass(frozen=True)
class Commissioning:
    """How the policy without a model behaves: it holds the measured pose, or swings every joint about it.

    `amplitude` [rad or m] is cut to what the limits of a column allow, `period_s` is one swing, `latency_s` is how
    long an inference takes, and `latency_kind` whether it waits meanwhile, as for a GPU, or computes on a core.
    """

    motion: str = 'hold'
    amplitude: float = 0.05
    period_s: float = 4.0
    latency_s: float = 0.0
    latency_kind: str = 'wait'


class CommissioningPolicy:
    """A policy without a model: the way to try wiring, limits, latency and recording on a new robot.

    Position columns start from the measured pose; velocity and effort columns stay 0, so that a base stands still.

    Args:
        contract: Whose columns it commands; every position column must also be a state column.
        settings: Motion and latency.

    Raises:
        NodeError: a position column that is not measured.
    """

    def __init__(self, contract: Contract, settings: Commissioning) -> None:
        self.contract = contract
        self.policy_id = f'{COMMISSIONING}-{settings.motion}'
        self.backend = COMMISSIONING
        # It looks at no picture; decoding them costs what it costs for a policy of this contract.
        self.picture_size: int | None = contract.image_size
        # It knows its own motion, and goes on with it over any delay.
        horizon = contract.horizon
        self.serving = Serving.for_horizon(horizon, max_delay=max(1, horizon - 1))
        self._settings = settings
        self._moves_N = np.array([interface_of(name) == 'position' for name in contract.action_names])
        for name, moves in zip(contract.action_names, self._moves_N.tolist(), strict=True):
            if moves and name not in contract.state_names:
                raise NodeError(
                    f'Robot {contract.name} commands {name} but does not measure it; the commissioning backend starts '
                    'from the measured pose, so add it to the state or run a bundle.'
                )
        self._index_N = np.array(
            [contract.state_names.index(n) if n in contract.state_names else 0 for n in contract.action_names]
        )
        bounds = [(column.limits.lower, column.limits.upper) for column in contract.actions]
        self._lower_N = np.array([-math.inf if low is None else low for low, _ in bounds])
        self._upper_N = np.array([math.inf if high is None else high for _, high in bounds])
        speeds_N = np.array([math.inf if c.limits.velocity is None else c.limits.velocity for c in contract.actions])
        most_N = SPEED_SHARE * speeds_N * settings.period_s / math.tau
        self._amplitude_N = np.where(self._moves_N, np.minimum(settings.amplitude, most_N), 0.0)
        self._centre_N: np.ndarray | None = None
        self._begin_ns = 0
        self._epoch = -1

    def warm_up(self) -> None:
        """Nothing is cold here."""

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """The motion from the observation's time on; a new epoch starts it anew from the measured pose."""
        begin_ns = time.perf_counter_ns()
        self._spend(begin_ns + round(self._settings.latency_s * 1e9))
        measured_N = np.where(self._moves_N, observation.state[self._index_N], 0.0)
        if self._centre_N is None or epoch != self._epoch or prefix_KN is None:
            # The centre keeps a margin for the swing, so that the motion is not cut off at a limit.
            self._centre_N = np.clip(measured_N, self._lower_N, self._upper_N)
            self._begin_ns, self._epoch = observation.state_stamp_ns, epoch
        H = self.contract.horizon
        data_HN = np.repeat(self._centre_N[None], H, axis=0)
        if self._settings.motion == 'sine':
            times_H = (observation.state_stamp_ns - self._begin_ns + self.contract.step_ns * np.arange(H)) / 1e9
            # 1 - cos starts at rest, sin would start at full speed.
            swing_H = 0.5 * (1.0 - np.cos(math.tau * times_H / self._settings.period_s))
            towards_N = np.where(self._centre_N + self._amplitude_N <= self._upper_N, 1.0, -1.0)
            data_HN = np.clip(data_HN + swing_H[:, None] * self._amplitude_N * towards_N, self._lower_N, self._upper_N)
        return Inferred(data_HN, inference_ns=time.perf_counter_ns() - begin_ns)

    def _spend(self, until_ns: int) -> None:
        """Lets an inference take its time."""
        if self._settings.latency_kind == 'wait':
            time.sleep(max(0, until_ns - time.perf_counter_ns()) / 1e9)
            return
        block = np.ones((256, 256), np.float32)
        while time.perf_counter_ns() < until_ns:
            block = block @ block * np.float32(1.0 / 256.0)

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class Wanted:
    """Which policy, as the parameters of the node say.

    `backend` is one of `BACKENDS`: with 'auto' the bundle's own order decides, the others name one engine. `bundle` is
    a folder, not read for the commissioning backend, which `commissioning` describes. `strict` refuses another backend
    than the one asked for; `threads` (0: the engine's choice), `seed` and `denoise_steps` (0: what the bundle
    recommends) are the engine's. `allow_untrained` takes a bundle whose action head was never trained. `remote` is
    where backend remote finds the policy; what runs it there, the server decides. `decode` says where actions come
    from; '' is what the bundle recommends.
    """

    backend: str = 'auto'
    bundle: str = ''
    commissioning: Commissioning = field(default_factory=Commissioning)
    strict: bool = False
    threads: int = 0
    seed: int = 0
    denoise_steps: int = 0
    allow_untrained: bool = False
    remote: RemoteSettings = field(default_factory=RemoteSettings)
    decode: Decode | Literal[''] = ''


def open_policy(wanted: Wanted, robot: Contract | None, timing: Timing) -> Policy:
    """The policy that is wanted, checked against the robot field by field.

    Args:
        wanted: Which one.
        robot: The contract it must fit; None takes the bundle's own, which only a replay may do.
        timing: How chunks will follow each other.

    Raises:
        NodeError: no bundle or robot named, or a bundle that was made for another robot.
        KiError: what the bundle itself finds wrong.
    """
    backend, bundle = wanted.backend, wanted.bundle
    if backend not in BACKENDS:
        raise NodeError(f'Backend {backend!r} is unknown; write one of {", ".join(BACKENDS)}.')
    if backend == COMMISSIONING:
        if robot is None:
            raise NodeError('No robot is named; the commissioning backend needs its contract.')
        return CommissioningPolicy(robot, wanted.commissioning)
    if backend == REMOTE:
        try:
            from ki_policy_node.policy.remote_policy import RemoteNodePolicy
        except ModuleNotFoundError as error:
            raise NodeError(
                f"Backend remote needs the Python module {error.name}; run pip install 'websockets>=14' msgpack."
            ) from error

        return RemoteNodePolicy(wanted.remote, robot, timing)
    if not bundle:
        raise NodeError(
            f'Parameter bundle is empty, and backend {backend} needs one; give the folder of a bundle, or backend: '
            f'{COMMISSIONING} to try the robot without a model.'
        )
    try:
        found = Path(bundle).is_dir()
    except OSError as error:
        raise NodeError(f'Bundle {bundle[:200]!r} cannot be opened: {error.strerror}.') from error
    if not found:
        raise NodeError(f'Parameter bundle is {bundle!r}, which is no folder; give the folder of a bundle.')
    from ki_policy_node.policy.bundle_policy import BundlePolicy
    from ki_vla.policy.inference import load_policy

    loaded = load_policy(
        bundle,
        backend,
        robot=robot,
        strict=wanted.strict,
        threads=wanted.threads,
        seed=wanted.seed,
        denoise_steps=wanted.denoise_steps,
        allow_untrained=wanted.allow_untrained,
        decode=wanted.decode or None,
    )
    try:
        return BundlePolicy(loaded, timing)
    except KiError:
        loaded.close()
        raise


def allowed_bundle(path: str, configured: str, root: str) -> str:
    """The bundle that a call on the network may load: the configured one, or one below `root`.

    Args:
        path: What the call names; empty takes the configured one.
        configured: The parameter `bundle`.
        root: The parameter `bundle_root`; empty takes the folder that the configured bundle lies in.

    Raises:
        NodeError: it lies elsewhere, links followed, or is no path.
    """
    if not path or path == configured:
        return configured
    if len(path) > MAX_PATH:
        raise NodeError(f'The path of a bundle has {len(path)} characters; at most {MAX_PATH} are a path.')
    if not root and not configured:
        raise NodeError('No policy is loaded by path: set parameter bundle_root to the folder that holds the bundles.')
    try:
        allowed = Path(root).expanduser().resolve() if root else Path(configured).resolve().parent
        wanted = Path(path).resolve()
        inside = wanted.is_relative_to(allowed) and wanted != allowed
    except (OSError, ValueError) as error:
        raise NodeError(f'{path[:100]!r} is no path of a bundle ({error.__class__.__name__}).') from error
    if not inside:
        raise NodeError(
            f'{path[:200]!r} is not below {allowed}; set parameter bundle_root to load bundles from elsewhere.'
        )
    return str(wanted)


def check_fits(policy_id: str, policy: Contract, robot: Contract) -> None:
    """Refuses a policy that was made for another robot, naming every field that differs.

    Raises:
        NodeError: the sentence for the operator.
    """
    differences = policy.mismatches(robot)
    if differences:
        raise NodeError(
            f'Policy {policy_id} does not fit robot {robot.name}: {"; ".join(differences)}. '
            'Load a bundle that was trained for this robot, or name the robot it was trained for.'
        )
