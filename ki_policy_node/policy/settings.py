"""The parameters of policy_node. No ROS here: launch files, `ki up` and the docs read them, too."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from ki_common.errors import KiError
from ki_common.node_settings import Change, LifecycleSettings, setting
from ki_policy_node.errors import NodeError
from ki_vla.policy.serving import AskedMode

Backend = Literal['auto', 'torch', 'onnx', 'tensorrt', 'remote', 'commissioning']
CommissioningMotion = Literal['hold', 'sine']
LatencyKind = Literal['wait', 'compute']
BACKENDS: tuple[str, ...] = get_args(Backend)


class PolicyNodeSettings(LifecycleSettings):
    """Parameters of policy_node."""

    raises: ClassVar[type[KiError]] = NodeError

    robot: str = setting('')
    """Robot contract: a name of config/robots, or the path of a YAML file."""
    bundle: str = setting('')
    """Folder of the policy bundle; not read with backends remote and commissioning."""
    bundle_root: str = setting('')
    """Folder below which ~/load_policy may load bundles; empty takes the one that `bundle` lies in."""
    backend: Backend = setting('auto')
    """What runs the model; remote asks a server of `ki serve`, commissioning moves the robot without a model,
    to try its wiring."""
    dry_run: bool = setting(True, change=Change.LIVE)
    """Infer, but publish on ~/dry_run_chunk only, which no executor follows."""
    instruction: str = setting('')
    """What to do until ~/set_instruction, ~/run or the topic instruction says otherwise; empty waits for them."""
    mode: AskedMode = setting('auto')
    """How chunks follow each other; auto: rtc for a bundle that was trained for it, else latest, ~/status says why."""
    execute_steps: int = setting(0, ge=0, le=999)
    """Steps of a chunk after which the next one is planned; 0 takes what the bundle recommends."""
    ensemble_coefficient: float = setting(0.01, ge=0.0, le=10.0)
    """The c of mode temporal_ensemble, which weights chunk i by exp(-c i), from the oldest on."""
    frame_wait: float = setting(0.05, unit='s', ge=0.0, le=1.0)
    """How long a due inference waits for a fresh frame of every camera."""
    inference_timeout: float = setting(5.0, unit='s', ge=0.1, le=600.0)
    """An inference that takes longer is a fault."""
    status_rate: float = setting(20.0, unit='Hz', ge=1.0, le=100.0, change=Change.READ_ONLY)
    """How often ~/status is sent; the executor holds the robot when it falls silent."""
    strict_backend: bool = setting(False)
    """Refuse to run when the backend that was asked for is not available."""
    threads: int = setting(0, ge=0, le=256)
    """CPU threads of the engine; 0 leaves the number to it."""
    seed: int = setting(0, ge=0, le=2**31 - 1)
    """Seed of the noise that flow matching starts from."""
    denoise_steps: int = setting(0, ge=0, le=100)
    """Steps from noise to actions; 0 takes what the bundle recommends, or what its graphs were exported with."""
    allow_untrained: bool = setting(False)
    """Load a bundle whose action head no training step has reached; for dry runs, its motion means nothing."""
    autostart: bool = setting(True, change=Change.READ_ONLY)
    """Configure and activate at the start; false leaves that to a lifecycle manager."""
    run_on_activate: bool = setting(False)
    """Start a run as soon as the node is active; else call ~/start or the action ~/run."""
    remote_url: str = setting('')
    """Backend remote: where the policy is served, ws://HOST:PORT."""
    remote_timeout: float = setting(1.0, unit='s', ge=0.05, le=60.0)
    """Backend remote: a server that takes longer to answer is lost; the robot holds until it answers again."""
    remote_token_file: str = setting('')
    """Backend remote: file with the server's token; empty sends none."""
    remote_jpeg_quality: int = setting(95, ge=0, le=100)
    """Backend remote: of the pictures that are sent; 0 sends them as they are."""
    motion: CommissioningMotion = setting('hold')
    """What backend commissioning does: hold the measured pose, or swing every joint about it."""
    amplitude: float = setting(0.05, unit='rad or m', ge=0.0, le=3.0)
    """Swing of each joint with motion sine; cut to half of what its velocity limit allows."""
    period: float = setting(4.0, unit='s', ge=0.1, le=600.0)
    """Time of one swing with motion sine."""
    latency: float = setting(0.0, unit='s', ge=0.0, le=60.0)
    """Time that an inference of backend commissioning takes."""
    latency_kind: LatencyKind = setting('wait')
    """What backend commissioning does in that time: wait, as for a GPU, or compute on one core."""
