"""The vocabulary of objects: kinds built from primitives, colours, and which pairs the robot never sees in action data.

An object stands upright on a table with its body frame at its centre. A kind says how large it is and how a gripper
takes it from above; shapes.py draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ki_sim.errors import SimError

COLOURS: dict[str, tuple[float, float, float]] = {
    'red': (0.85, 0.10, 0.10),
    'green': (0.10, 0.62, 0.18),
    'blue': (0.12, 0.25, 0.88),
    'yellow': (0.95, 0.82, 0.08),
    'purple': (0.52, 0.16, 0.68),
    'orange': (0.96, 0.48, 0.05),
}
# Colours and kinds below are only ever talked about (captions, questions, boxes), never handled by the expert.
VQA_COLOURS: dict[str, tuple[float, float, float]] = {
    'white': (0.95, 0.95, 0.95),
    'black': (0.05, 0.05, 0.06),
    'pink': (0.97, 0.52, 0.70),
    'brown': (0.42, 0.24, 0.10),
    'cyan': (0.10, 0.80, 0.85),
    'grey': (0.50, 0.50, 0.52),
}
ALL_COLOURS = {**COLOURS, **VQA_COLOURS}


@dataclass(frozen=True)
class ObjectKind:
    """One kind of object: ranges of width and height (m), how it is grasped, what class of household item it is.

    `grasp` is the height of the grasp above the object's foot as a share of its height. `round` objects may be taken
    at any yaw, square ones along their sides, and `handled` ones across their handle.
    """

    name: str
    width: tuple[float, float]
    height: tuple[float, float]
    grasp: float
    shape: str = 'round'
    item: str = ''
    mass: float = 0.08


KINDS: dict[str, ObjectKind] = {
    kind.name: kind
    for kind in (
        ObjectKind('block', (0.054, 0.064), (0.054, 0.064), 0.50, 'square'),
        ObjectKind('ball', (0.058, 0.066), (0.058, 0.066), 0.48),
        ObjectKind('cup', (0.062, 0.070), (0.072, 0.082), 0.60, 'handled', 'dish'),
        ObjectKind('bowl', (0.084, 0.092), (0.042, 0.050), 0.55, 'round', 'dish'),
        ObjectKind('plate', (0.090, 0.096), (0.018, 0.021), 0.55, 'round', 'dish'),
        ObjectKind('can', (0.054, 0.062), (0.105, 0.118), 0.70, 'round', 'trash'),
        ObjectKind('bottle', (0.052, 0.058), (0.150, 0.165), 0.45, 'round', 'trash'),
        ObjectKind('carton', (0.052, 0.058), (0.098, 0.110), 0.62, 'square', 'trash'),
    )
}
VQA_KINDS: dict[str, ObjectKind] = {
    kind.name: kind
    for kind in (
        ObjectKind('book', (0.085, 0.100), (0.020, 0.030), 0.5, 'square'),
        ObjectKind('banana', (0.110, 0.130), (0.030, 0.034), 0.5, 'square'),
        ObjectKind('apple', (0.060, 0.068), (0.060, 0.068), 0.5),
        ObjectKind('spoon', (0.120, 0.140), (0.014, 0.018), 0.5, 'square'),
        ObjectKind('candle', (0.036, 0.044), (0.090, 0.110), 0.5),
        ObjectKind('lamp', (0.070, 0.080), (0.130, 0.150), 0.5),
        ObjectKind('hat', (0.100, 0.112), (0.055, 0.065), 0.5),
        ObjectKind('hammer', (0.120, 0.140), (0.034, 0.040), 0.5, 'square'),
    )
}
ALL_KINDS = {**KINDS, **VQA_KINDS}

# Never present in any scene that actions are recorded from, not even as a bystander; the robot reads about them
# in captions and questions only (the generalisation test of the paper's Fig. 7).
HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    {
        ('red', 'cup'),
        ('blue', 'block'),
        ('green', 'ball'),
        ('yellow', 'bowl'),
        ('purple', 'can'),
        ('orange', 'plate'),
        ('green', 'bottle'),
        ('blue', 'carton'),
    }
)


def pairs(split: str, kinds: tuple[str, ...] = (), colours: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """All (colour, kind) pairs of a split, `train` or `heldout`, optionally of some kinds and colours only."""
    if split not in ('train', 'heldout'):
        raise SimError(f"split '{split}' is not known: use train or heldout")
    for kind in kinds:
        check_kind(kind)
    for colour in colours:
        check_colour(colour)
    return [
        (colour, kind)
        for kind in (kinds or KINDS)
        for colour in (colours or COLOURS)
        if ((colour, kind) in HELD_OUT) == (split == 'heldout')
    ]


def check_kind(name: str) -> ObjectKind:
    """The kind of a name, or SimError with the names there are."""
    if name not in ALL_KINDS:
        raise SimError(f"object '{name}' is not known: use one of {', '.join(ALL_KINDS)}")
    return ALL_KINDS[name]


def check_colour(name: str) -> tuple[float, float, float]:
    """The RGB of a colour name, or SimError with the names there are."""
    if name not in ALL_COLOURS:
        raise SimError(f"colour '{name}' is not known: use one of {', '.join(ALL_COLOURS)}")
    return ALL_COLOURS[name]


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene: what it is, its size (m) and its starting pose in the world (m, rad)."""

    colour: str
    kind: str
    width: float
    height: float
    x: float
    y: float
    yaw: float
    table: int = 1
    shade: float = 1.0

    @property
    def label(self) -> str:
        """How people call it: 'red cup'."""
        return f'{self.colour} {self.kind}'

    @property
    def reach(self) -> float:
        """Radius of the circle it covers on the table, m."""
        return self.width * (0.71 if ALL_KINDS[self.kind].shape == 'square' else 0.5)
