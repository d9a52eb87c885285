"""The simulated robot in its scene: commands in, physics on, observations out. Plain Python, no ROS."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.tasks import tasks
from ki_sim.tasks.episode import TaskEpisode
from ki_sim.world.controllers import (
    ForwardController,
    JointTrajectoryController,
    Point,
    TrajectoryCommand,
    TwistController,
    rate_limited,
)
from ki_sim.world.render import Cameras
from ki_sim.world.robot import (
    ALL_CAMERAS,
    ARM_JOINTS,
    BASE_AXES,
    BASE_COLUMNS,
    BASE_SPEED,
    CAMERAS,
    COLUMNS,
    GRIPPERS,
    LIMITS,
    POSITION_JOINTS,
    SIDES,
    TIMESTEP_NS,
)
from ki_sim.world.scene import scene_xml
from ki_sim.world.touches import Touches

Floats = npt.NDArray[np.float64]
TICK_NS = 10_000_000  # controllers run at 100 Hz, as the contract's joint states do
STEP_NS = 50_000_000  # the contract's 20 Hz
SUBSTEPS = TICK_NS // TIMESTEP_NS

# Hands over the near edges of the bins, fingers down, out of the head camera's view of the objects.
HOME_ARM = {
    'left': (0.4101, -1.5532, 2.2127, 0.0, 0.9113, 0.4101),
    'right': (-0.4101, -1.5532, 2.2127, 0.0, 0.9113, -0.4101),
}
HOME_OPENING = 0.10
STOPPED = 'the emergency stop is pressed: release it before commanding the robot'


class JointSense(NamedTuple):
    """What is measured of a joint: rad, rad/s and N m, or m, m/s and N for a gripper; its effort is the servo's."""

    position: float
    velocity: float
    effort: float


@dataclass(frozen=True)
class SimObservation:
    """What the robot senses at one moment.

    `images` are uint8 RGB by camera; `joints` what is measured of each; `pose` is the base's odometry (x, y, yaw),
    `twist` its velocity in its own frame; `state` is the contract's state vector (see robot.COLUMNS).
    """

    time_ns: int
    images: dict[str, npt.NDArray[np.uint8]]
    joints: dict[str, JointSense]
    pose: Floats
    twist: Floats
    state: Floats
    instruction: str


class World:
    """One episode of a task: the same (task, seed, goal, split) gives the same states and pictures, bit for bit.

    `goal` picks the instruction independently of the scene that `seed` draws (None: from the seed); `image_size` is
    one number or (height, width); `cameras` may name fewer than the robot has, or none for physics alone.
    """

    def __init__(
        self,
        task: str,
        seed: int,
        goal: int | None = None,
        split: str = 'train',
        image_size: int | tuple[int, int] = 96,
        cameras: tuple[str, ...] = CAMERAS,
        shadows: bool = False,
        command_timeout_ns: int = 0,
        episode: TaskEpisode | None = None,
    ) -> None:
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = (int(height), int(width))
        for camera in cameras:
            if camera not in ALL_CAMERAS:
                raise SimError(f"there is no camera '{camera}': use one of {', '.join(ALL_CAMERAS)}")
        self.camera_names, self._shadows, self._timeout_ns = tuple(cameras), shadows, command_timeout_ns
        self._cameras: Cameras | None = None
        self.load(episode or tasks.episode(task, seed, goal, split))

    def reset(self, seed: int, task: str | None = None, goal: int | None = None, split: str | None = None) -> None:
        """Begin another episode."""
        now = self.episode
        self.load(tasks.episode(task or now.task, seed, goal, split or now.split))

    def load(self, episode: TaskEpisode) -> None:
        """Build an episode's scene and put the robot at its start."""
        self.close()
        self.episode = episode
        self.model = mujoco.MjModel.from_xml_string(scene_xml(episode.scene, TIMESTEP_NS * 1e-9, self._shadows))
        self.data = mujoco.MjData(self.model)
        self._index()
        self.time_ns, self.stopped, self.touches = 0, False, Touches()
        for side in SIDES:
            self.data.qpos[self._qpos[side]] = HOME_ARM[side]
            self.data.qpos[self._fingers[side]] = HOME_OPENING / 2
        mujoco.mj_forward(self.model, self.data)
        self.arms = {
            side: JointTrajectoryController(
                f'{side}_arm_controller', {n: LIMITS[n] for n in ARM_JOINTS[side]}, self._timeout_ns
            )
            for side in SIDES
        }
        self.grippers = {
            side: ForwardController(f'{side}_gripper_controller', {GRIPPERS[side]: LIMITS[GRIPPERS[side]]})
            for side in SIDES
        }
        self.base = TwistController('base_controller', list(BASE_SPEED.values()))
        self._hold()
        self._settle()
        self.start = [self.object_position(i) for i in range(len(episode.scene.objects))]

    def close(self) -> None:
        """Free the cameras."""
        if self._cameras is not None:
            self._cameras.close()
            self._cameras = None

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # commands ---------------------------------------------------------------------------------------------------

    def step(self, action: npt.ArrayLike, each_tick: Callable[[], None] | None = None) -> None:
        """Carry out one row of the contract's action columns for one step of 50 ms.

        Positions are reached at the step's end. Controllers get what the messages of `record.sim_bags.Sender` say: for
        an arm a trajectory of one point. `each_tick` is called after every 10 ms. Raises SimError for a row that a
        controller refuses.
        """
        row = np.asarray(action, np.float64)
        if row.shape != (len(COLUMNS),):
            raise SimError(f'an action has {len(COLUMNS)} numbers ({COLUMNS[0]} ... {COLUMNS[-1]}), got {row.size}')
        for offset, side in ((0, 'left'), (7, 'right')):
            point = Point(STEP_NS, row[offset : offset + 6].tolist())
            self.command_arm(side, TrajectoryCommand(ARM_JOINTS[side], (point,)))
            self.command_gripper(side, row[offset + 6])
        self.command_base(row[14:])
        self.advance(STEP_NS, each_tick)

    def command_arm(self, side: str, trajectory: TrajectoryCommand) -> None:
        """Give an arm's controller a trajectory."""
        self._check_stop()
        self.arms[side].accept(trajectory, self.time_ns)

    def command_gripper(self, side: str, opening: float) -> None:
        """Give a gripper its opening, m."""
        self._check_stop()
        self.grippers[side].accept([opening])

    def command_base(self, twist: npt.ArrayLike, stamp_ns: int = 0) -> None:
        """Give the base a twist in its own frame."""
        self._check_stop()
        self.base.accept(twist, self.time_ns, stamp_ns)

    def emergency_stop(self) -> None:
        """Hold both arms where they are, stop the base, and refuse commands until `release`."""
        self._hold()
        self.stopped = True

    def release(self) -> None:
        """Take commands again; nothing moves before the next one."""
        self._hold()
        self.stopped = False

    def advance(self, duration_ns: int, each_tick: Callable[[], None] | None = None) -> None:
        """Let time pass; it does so in whole ticks of 10 ms."""
        for _ in range(max(1, round(duration_ns / TICK_NS))):
            self.time_ns += TICK_NS
            self._drive()
            mujoco.mj_step(self.model, self.data, SUBSTEPS)
            self._feel()
            if each_tick is not None:
                each_tick()

    # senses -----------------------------------------------------------------------------------------------------

    def observe(self, images: bool = True) -> SimObservation:
        """What the robot senses now; `images=False` leaves the cameras out."""
        joints = self.joint_states()
        pose, twist = self.odometry()
        return SimObservation(
            self.time_ns,
            {name: self.image(name) for name in self.camera_names} if images else {},
            joints,
            pose,
            twist,
            np.array([*(joints[name][0] for name in POSITION_JOINTS), *twist]),
            self.episode.instruction,
        )

    def image(self, camera: str, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
        """One camera's picture now, uint8 (height, width, 3)."""
        return self.cameras(size).image(self.data, camera)

    def cameras(self, size: tuple[int, int] | None = None) -> Cameras:
        """The renderer of this scene, remade when the size changes."""
        height, width = size or self.image_size
        if self._cameras is None or (self._cameras.height, self._cameras.width) != (height, width):
            self.close()
            self._cameras = Cameras(self.model, height, width, self._shadows)
        return self._cameras

    def arms_aside(self) -> mujoco.MjData:
        """A copy of the present state with both arms at rest, where they hide nothing from the head camera."""
        data = copy.copy(self.data)
        for side in SIDES:
            data.qpos[self._qpos[side]] = HOME_ARM[side]
        mujoco.mj_kinematics(self.model, data)
        return data

    def joint_states(self) -> dict[str, JointSense]:
        """What is measured of every commanded joint, by name."""
        q, v, force = self.data.qpos, self.data.qvel, self.data.actuator_force
        states = {}
        for side in SIDES:
            indices = zip(ARM_JOINTS[side], self._qpos[side], self._dofs[side], self._arm_ctrl[side], strict=True)
            for name, i, j, k in indices:
                states[name] = JointSense(float(q[i]), float(v[j]), float(force[k]))
            fingers, speeds, grip = self._fingers[side], self._finger_dofs[side], self._grip_ctrl[side]
            states[GRIPPERS[side]] = JointSense(float(q[fingers].sum()), float(v[speeds].sum()), float(force[grip]))
        return states

    def sent(self, side: str) -> tuple[Floats, float]:
        """Where an arm's servos are sent now: joint angles (6,), rad, and its gripper's opening, m."""
        return self.data.ctrl[self._arm_ctrl[side]].copy(), float(self.data.ctrl[self._grip_ctrl[side]])

    def odometry(self) -> tuple[Floats, Floats]:
        """Pose of the base (x, y, yaw) in the world and its twist in its own frame."""
        pose, v = self.data.qpos[self._base].copy(), self.data.qvel[self._base_dofs]
        c, s = np.cos(pose[2]), np.sin(pose[2])
        return pose, np.array([c * v[0] + s * v[1], -s * v[0] + c * v[1], v[2]])

    @property
    def instruction(self) -> str:
        """What the robot was told."""
        return self.episode.instruction

    def object_position(self, index: int) -> Floats:
        """Centre of an object in the world, (3,)."""
        return np.array(self.data.xpos[self._objects[index]])

    def object_yaw(self, index: int) -> float:
        """Heading of an object, rad."""
        matrix = self.data.xmat[self._objects[index]]
        return float(np.arctan2(matrix[3], matrix[0]))

    def object_upright(self, index: int) -> float:
        """Cosine of the angle between an object's axis and the vertical."""
        return float(self.data.xmat[self._objects[index]][8])

    def object_speed(self, index: int) -> float:
        """Speed of an object's centre, m/s."""
        dof = self._object_dofs[index]
        return float(np.linalg.norm(self.data.qvel[dof : dof + 3]))

    def in_contact(self, one: int, other: int) -> bool:
        """Whether two objects touch each other."""
        return bool(self._contacts(one, other).any())

    def bears(self, one: int, other: int) -> bool:
        """Whether two objects touch such that one rests on the other: across a face more level than upright."""
        normals = self.data.contact.frame[: self.data.ncon][self._contacts(one, other)]
        return bool((np.abs(normals[:, 2]) > np.sqrt(0.5)).any())

    def success(self) -> bool:
        """Whether the task is done now."""
        return tasks.success(self)

    def followed(self) -> bool:
        """Whether the words were heard so far: see `ki_sim.tasks.tasks.followed`."""
        return tasks.followed(self)

    def score(self) -> float:
        """How much of the task is done, 0 to 1; several objects count one by one."""
        return tasks.score(self)

    # inside -----------------------------------------------------------------------------------------------------

    def _contacts(self, one: int, other: int) -> npt.NDArray[np.bool_]:
        """Which of the present contacts are between two objects."""
        pairs = self.model.geom_bodyid[self.data.contact.geom[: self.data.ncon]]
        wanted = np.sort([self._objects[one], self._objects[other]])
        return np.asarray((np.sort(pairs, axis=1) == wanted).all(axis=1))

    def _index(self) -> None:
        joint = self.model.joint
        self._qpos = {s: np.array([joint(n).qposadr[0] for n in ARM_JOINTS[s]]) for s in SIDES}
        self._dofs = {s: np.array([joint(n).dofadr[0] for n in ARM_JOINTS[s]]) for s in SIDES}
        self._fingers = {s: np.array([joint(f'{s}_finger_{f}').qposadr[0] for f in 'ab']) for s in SIDES}
        self._finger_dofs = {s: np.array([joint(f'{s}_finger_{f}').dofadr[0] for f in 'ab']) for s in SIDES}
        self._base = np.array([joint(n).qposadr[0] for n in BASE_AXES])
        self._base_dofs = np.array([joint(n).dofadr[0] for n in BASE_AXES])
        self._arm_ctrl = {s: np.array([self.model.actuator(n).id for n in ARM_JOINTS[s]]) for s in SIDES}
        self._grip_ctrl = {s: self.model.actuator(GRIPPERS[s]).id for s in SIDES}
        self._base_ctrl = np.array([self.model.actuator(n).id for n in BASE_AXES])
        self._arm_speed = {s: np.array([LIMITS[n].velocity for n in ARM_JOINTS[s]]) for s in SIDES}
        self._objects = [self.model.body(f'object{i}').id for i in range(len(self.episode.scene.objects))]
        self._object_dofs = [int(joint(f'object{i}').dofadr[0]) for i in range(len(self._objects))]
        self._object_of = {body: i for i, body in enumerate(self._objects)}
        self._finger_of = {self.model.body(f'{s}_finger_{f}').id: f'{s}_{f}' for s in SIDES for f in 'ab'}
        self._is_finger = np.zeros(self.model.nbody, bool)
        self._is_finger[list(self._finger_of)] = True

    def _hold(self) -> None:
        for side in SIDES:
            self.arms[side].activate(self.time_ns, self.data.qpos[self._qpos[side]])
            self.grippers[side].hold([min(LIMITS[GRIPPERS[side]].upper, self.data.qpos[self._fingers[side]].sum())])
            self.data.ctrl[self._arm_ctrl[side]] = self.data.qpos[self._qpos[side]]
            self.data.ctrl[self._grip_ctrl[side]] = self.grippers[side].command[0]
        self.base.stop()
        self.data.ctrl[self._base_ctrl] = 0.0

    def _settle(self) -> None:
        mujoco.mj_step(self.model, self.data, 80)
        self.data.time = 0.0
        mujoco.mj_forward(self.model, self.data)

    def _drive(self) -> None:
        ctrl, q, dt = self.data.ctrl, self.data.qpos, TICK_NS * 1e-9
        for side in SIDES:
            i = self._arm_ctrl[side]
            wanted = self.arms[side].update(self.time_ns - TICK_NS, q[self._qpos[side]])
            ctrl[i] = rate_limited(ctrl[i], wanted, self._arm_speed[side], dt)
            g = self._grip_ctrl[side]
            ctrl[g] = rate_limited(ctrl[g], self.grippers[side].command[0], LIMITS[GRIPPERS[side]].velocity, dt)
        vx, vy, wz = self.base.sample(self.time_ns)
        c, s = np.cos(q[self._base[2]]), np.sin(q[self._base[2]])
        ctrl[self._base_ctrl] = (c * vx - s * vy, s * vx + c * vy, wz)

    def _feel(self) -> None:
        touches = self.touches
        for objects in touches.now.values():
            objects.clear()
        if not self.data.ncon:
            return
        bodies = self.model.geom_bodyid[self.data.contact.geom[: self.data.ncon]]
        for one, two in bodies[self._is_finger[bodies].any(axis=1)]:
            finger, other = (one, two) if self._is_finger[one] else (two, one)
            obj = self._object_of.get(int(other))
            if obj is not None:
                touches.now[self._finger_of[int(finger)]].add(obj)
                if touches.first < 0:
                    touches.first, touches.first_hand = obj, self._finger_of[int(finger)].rpartition('_')[0]
        for side in SIDES:
            touches.ever_held[side] |= touches.held(side)

    def _check_stop(self) -> None:
        if self.stopped:
            raise SimError(STOPPED)


def clipped(action: npt.ArrayLike) -> Floats:
    """An action row inside every limit, for policies whose numbers stray a little; SimError if not finite."""
    row = np.array(action, np.float64)
    if row.shape != (len(COLUMNS),) or not np.isfinite(row).all():
        raise SimError(f'an action is {len(COLUMNS)} finite numbers, got shape {row.shape}: the policy is broken')
    for i, name in enumerate(POSITION_JOINTS):
        row[i] = np.clip(row[i], LIMITS[name].lower, LIMITS[name].upper)
    for i, name in enumerate(BASE_COLUMNS, len(POSITION_JOINTS)):
        row[i] = np.clip(row[i], -BASE_SPEED[name], BASE_SPEED[name])
    return row
