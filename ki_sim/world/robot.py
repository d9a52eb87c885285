"""The robot as MJCF: two 6-DoF arms with parallel grippers and a head on a holonomic base, all from primitives.

Frames: x forward, y left, z up; the base frame lies on the floor under the robot. With all joints at zero both arms
point forward. Arm joints: 1 shoulder yaw, 2 shoulder pitch, 3 elbow pitch, 4 forearm roll, 5 wrist pitch, 6 wrist
roll; a positive pitch lowers. A gripper is two sliding fingers, coupled; its position is the opening between the
pads in metres. The base moves by planar velocities. Units: m, rad, s, kg, N.
"""

from __future__ import annotations

from dataclasses import dataclass

SIDES = ('left', 'right')
ARM_JOINTS = {side: tuple(f'{side}_joint{i}' for i in range(1, 7)) for side in SIDES}
GRIPPERS = {side: f'{side}_gripper' for side in SIDES}
BASE_AXES = ('base_x', 'base_y', 'base_yaw')
CAMERAS = ('head', 'left_wrist', 'right_wrist')
SCENE_CAMERAS = ('front',)  # that do not move with the robot, see `scene.py`
ALL_CAMERAS = CAMERAS + SCENE_CAMERAS
BASE_COLUMNS = ('base/linear/x/velocity', 'base/linear/y/velocity', 'base/angular/z/velocity')

POSITION_JOINTS = (*ARM_JOINTS['left'], GRIPPERS['left'], *ARM_JOINTS['right'], GRIPPERS['right'])
# The contract's column order, for state and for action alike.
COLUMNS = (*(f'{joint}/position' for joint in POSITION_JOINTS), *BASE_COLUMNS)
EFFORTS = tuple(f'{joint}/effort' for joint in POSITION_JOINTS)  # sensed beside these

UPPER_ARM, FOREARM, HAND = 0.33, 0.31, 0.20  # HAND: wrist pitch axis to the point between the pads
SHOULDER = (0.13, 0.17, 1.06)
OPENING_MAX = 0.12
TIMESTEP_NS = 2_500_000


@dataclass(frozen=True)
class JointLimit:
    """Limits of one commanded column: position range, velocity, and the servo's greatest effort (N m, or N)."""

    lower: float
    upper: float
    velocity: float
    effort: float


_ARM_LIMITS = (
    JointLimit(-2.4, 2.4, 2.5, 80.0),
    JointLimit(-2.2, 1.2, 2.5, 80.0),
    JointLimit(-0.2, 2.7, 2.5, 60.0),
    JointLimit(-2.9, 2.9, 3.0, 25.0),
    JointLimit(-2.0, 2.0, 3.0, 25.0),
    JointLimit(-3.1, 3.1, 3.5, 15.0),
)
LIMITS: dict[str, JointLimit] = {
    **{name: limit for side in SIDES for name, limit in zip(ARM_JOINTS[side], _ARM_LIMITS, strict=True)},
    **{GRIPPERS[side]: JointLimit(0.0, OPENING_MAX, 0.4, 30.0) for side in SIDES},
}
BASE_SPEED = {BASE_COLUMNS[0]: 0.6, BASE_COLUMNS[1]: 0.6, BASE_COLUMNS[2]: 1.2}

_STIFFNESS = (1500.0, 1500.0, 1000.0, 300.0, 300.0, 150.0)
_ARMATURE = (0.25, 0.25, 0.15, 0.05, 0.05, 0.02)
ARM_AXES = ('0 0 1', '0 1 0', '0 1 0', '1 0 0', '0 1 0', '1 0 0')

WHITE, GREY, DARK = '0.90 0.91 0.92 1', '0.45 0.47 0.50 1', '0.13 0.13 0.15 1'
SKIN = 'contype="1" conaffinity="0"'  # the robot touches tables, bins and objects, not itself
GHOST = 'contype="0" conaffinity="0" mass="0"'  # seen, but not felt


def robot_body() -> str:
    """The `<body>` of the whole robot; the positions of its three base joints are the pose of its base in the world."""
    joints = (
        '<joint name="base_x" type="slide" axis="1 0 0"/><joint name="base_y" type="slide" axis="0 1 0"/>'
        '<joint name="base_yaw" type="hinge" axis="0 0 1"/>'
    )
    return f"""
<body name="base" pos="0 0 0" gravcomp="1">
  {joints}
  <geom name="base_shell" type="cylinder" size="0.23 0.12" pos="0 0 0.16" rgba="{WHITE}" mass="40" {SKIN}/>
  <geom name="base_band" type="cylinder" size="0.234 0.02" pos="0 0 0.22" rgba="0.10 0.45 0.55 1" {GHOST}/>
  <geom name="base_foot" type="cylinder" size="0.20 0.02" pos="0 0 0.03" rgba="{DARK}" {GHOST}/>
  <geom name="column" type="box" size="0.07 0.09 0.42" pos="-0.04 0 0.68" rgba="{GREY}" mass="8" {SKIN}/>
  <geom name="shoulders" type="box" size="0.05 0.16 0.045" pos="0.06 0 1.06" rgba="{WHITE}" mass="4" {SKIN}/>
  <geom name="neck" type="capsule" fromto="0.02 0 1.1 0.05 0 1.44" size="0.025" rgba="{DARK}" {GHOST}/>
  <geom name="head" type="ellipsoid" size="0.055 0.075 0.06" pos="0.06 0 1.50" rgba="{WHITE}" {GHOST}/>
  <geom name="eye_l" type="sphere" size="0.014" pos="0.108 0.028 1.50" rgba="{DARK}" {GHOST}/>
  <geom name="eye_r" type="sphere" size="0.014" pos="0.108 -0.028 1.50" rgba="{DARK}" {GHOST}/>
  <camera name="head" pos="0.17 0 1.50" xyaxes="0 -1 0 0.93 0 0.37" fovy="57"/>
  {arm_body('left')}
  {arm_body('right')}
</body>"""


def arm_body(side: str) -> str:
    """One arm, nested bodies from shoulder to fingers."""
    sign = 1 if side == 'left' else -1
    x, y, z = SHOULDER
    accent = '0.20 0.34 0.40 1' if side == 'left' else '0.36 0.30 0.26 1'

    def joint(index: int) -> str:
        name, limit = ARM_JOINTS[side][index], _ARM_LIMITS[index]
        return (
            f'<joint name="{name}" axis="{ARM_AXES[index]}" range="{limit.lower} {limit.upper}" '
            f'armature="{_ARMATURE[index]}" damping="1"/>'
        )

    return f"""
<body name="{side}_link1" pos="{x} {sign * y} {z}" gravcomp="1">{joint(0)}
  <geom type="cylinder" size="0.05 0.055" rgba="{accent}" mass="1.2" {SKIN}/>
  <body name="{side}_link2" gravcomp="1">{joint(1)}
    <geom type="capsule" fromto="0.03 0 0 {UPPER_ARM} 0 0" size="0.036" rgba="{WHITE}" mass="1.4" {SKIN}/>
    <body name="{side}_link3" pos="{UPPER_ARM} 0 0" gravcomp="1">{joint(2)}
      <geom type="cylinder" size="0.042 0.045" euler="1.5708 0 0" rgba="{accent}" mass="0.5" {SKIN}/>
      <geom type="capsule" fromto="0.02 0 0 0.15 0 0" size="0.032" rgba="{WHITE}" mass="0.6" {SKIN}/>
      <body name="{side}_link4" pos="0.15 0 0" gravcomp="1">{joint(3)}
        <geom type="capsule" fromto="0.01 0 0 {FOREARM - 0.18} 0 0" size="0.029" rgba="{GREY}" mass="0.5" {SKIN}/>
        <body name="{side}_link5" pos="{FOREARM - 0.15} 0 0" gravcomp="1">{joint(4)}
          <geom type="cylinder" size="0.030 0.032" euler="1.5708 0 0" rgba="{accent}" mass="0.3" {SKIN}/>
          <body name="{side}_hand" gravcomp="1">{joint(5)}{hand(side)}
          </body>
        </body>
      </body>
    </body>
  </body>
</body>"""


def hand(side: str) -> str:
    """Palm, wrist camera and two sliding fingers; left and right hands feel each other, not themselves."""
    bits = ('9', '16') if side == 'left' else ('17', '8')  # 1 touches the scene; 8 and 16 the other hand
    touch = f'contype="{bits[0]}" conaffinity="{bits[1]}"'
    pad = f'{touch} friction="1.6 0.03 0.001" condim="4" solimp="0.95 0.99 0.001" solref="0.006 1"'
    fingers = ''.join(
        f"""
            <body name="{side}_finger_{name}" pos="0.125 0 0" gravcomp="1">
              <joint name="{side}_finger_{name}" type="slide" axis="0 {way} 0" range="0 {OPENING_MAX / 2 + 0.001}"
                     armature="0.05" damping="4" solreflimit="0.005 1" solimplimit="0.98 0.999 0.0005"/>
              <geom name="{side}_pad_{name}" type="box" size="0.048 0.007 0.013" pos="0.044 {way * 0.007} 0"
                    rgba="{DARK}" mass="0.05" {pad}/>
              <geom type="box" size="0.016 0.004 0.0135" pos="0.077 {way * 0.0045} 0" rgba="0.85 0.87 0.9 1" {GHOST}/>
            </body>"""
        for name, way in (('a', 1), ('b', -1))
    )
    return f"""
            <geom type="capsule" fromto="0.01 0 0 0.07 0 0" size="0.028" rgba="{WHITE}" mass="0.3" {touch}/>
            <geom type="box" size="0.018 0.070 0.022" pos="0.098 0 0" rgba="{GREY}" mass="0.3" {touch}/>
            <geom type="box" size="0.012 0.018 0.012" pos="0.07 0 0.052" rgba="{DARK}" {GHOST}/>
            <camera name="{side}_wrist" pos="0.070 0 0.080" xyaxes="0 -1 0 0.17 0 0.985" fovy="82"/>
            <site name="{side}_tcp" pos="{HAND} 0 0" size="0.005" rgba="0 0 0 0"/>{fingers}"""


def robot_rest() -> str:
    """Everything of the robot outside the world body: tendons, couplings, actuators."""
    tendons = ''.join(
        f'<fixed name="{GRIPPERS[side]}"><joint joint="{side}_finger_a" coef="1"/>'
        f'<joint joint="{side}_finger_b" coef="1"/></fixed>'
        for side in SIDES
    )
    couplings = ''.join(
        f'<joint joint1="{side}_finger_a" joint2="{side}_finger_b" solref="0.005 1"/>' for side in SIDES
    )
    return (
        f'<tendon>{tendons}</tendon><equality>{couplings}</equality>'
        f'<actuator>{"".join(_servos(side) for side in SIDES)}{_base_motors()}</actuator>'
    )


def _servos(side: str) -> str:
    arm = ''.join(
        f'<position name="{name}" joint="{name}" kp="{stiffness}" dampratio="1" '
        f'ctrlrange="{limit.lower} {limit.upper}" forcerange="-{limit.effort} {limit.effort}"/>'
        for name, limit, stiffness in zip(ARM_JOINTS[side], _ARM_LIMITS, _STIFFNESS, strict=True)
    )
    grip = LIMITS[GRIPPERS[side]]
    return arm + (
        f'<position name="{GRIPPERS[side]}" tendon="{GRIPPERS[side]}" kp="1200" kv="40" '
        f'ctrlrange="0 {OPENING_MAX}" forcerange="-{grip.effort} {grip.effort}"/>'
    )


def _base_motors() -> str:
    # Velocity servos this stiff act as brakes at rest: what the arms push the base by, they pull it back by.
    return ''.join(
        f'<velocity name="{axis}" joint="{axis}" kv="{gain}" forcerange="-{force} {force}"/>'
        for axis, gain, force in (('base_x', 6000, 900), ('base_y', 6000, 900), ('base_yaw', 1500, 400))
    )
