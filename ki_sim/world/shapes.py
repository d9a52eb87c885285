"""What each kind of object looks like: MJCF geoms in the frame of its body, for collisions and for looks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ki_sim.world.objects import SceneObject, check_colour, check_kind

METAL, PAPER, WOOD = '0.75 0.76 0.78 1', '0.96 0.96 0.94 1', '0.30 0.20 0.10 1'
INK, IRON, FLAME, LEAF = '0.12 0.12 0.13 1', '0.34 0.35 0.38 1', '1.0 0.75 0.2 1', '0.2 0.5 0.15 1'
SEEN = 'contype="0" conaffinity="0" mass="0"'


@dataclass(frozen=True)
class _Pen:
    """Draws geoms: r and h are half the object's width and height; three tones of its colour."""

    r: float
    h: float
    paint: str
    light: str
    dark: str
    solid: str

    def geom(self, kind: str, size: Sequence[float], at: Sequence[float], rgba: str, felt: bool = False) -> str:
        return (
            f'<geom type="{kind}" size="{_join(size)}" pos="{_join(at)}" rgba="{rgba}" {self.solid if felt else SEEN}/>'
        )

    def disc(self, radius: float, half: float, z: float, rgba: str, felt: bool = False) -> str:
        return self.geom('cylinder', (radius, half), (0, 0, z), rgba, felt)

    def box(self, size: Sequence[float], at: Sequence[float], rgba: str, felt: bool = False) -> str:
        return self.geom('box', size, at, rgba, felt)

    def blob(self, size: Sequence[float], at: Sequence[float], rgba: str) -> str:
        return self.geom('ellipsoid', size, at, rgba)

    def rod(self, a: Sequence[float], b: Sequence[float], radius: float, rgba: str, felt: bool = False) -> str:
        return (
            f'<geom type="capsule" fromto="{_join(a)} {_join(b)}" size="{radius:.5f}" rgba="{rgba}" '
            f'{self.solid if felt else SEEN}/>'
        )


def shapes(obj: SceneObject) -> str:
    """The MJCF geoms of an object, in its body frame."""
    base = [min(1.0, c * obj.shade) for c in check_colour(obj.colour)]
    # Only a ball rolls; the third figure of friction with condim 6 lets it come to rest.
    roll, dims = ('0.004', 6) if obj.kind == 'ball' else ('0.001', 4)
    solid = f'contype="2" conaffinity="7" friction="1.0 0.02 {roll}" condim="{dims}" mass="{check_kind(obj.kind).mass}"'
    pen = _Pen(
        obj.width / 2,
        obj.height / 2,
        _rgba(base),
        _rgba([c + (1 - c) * 0.55 for c in base]),
        _rgba([c * 0.5 for c in base]),
        solid,
    )
    return ''.join(_DRAW[obj.kind](pen))


def _block(p: _Pen) -> list[str]:
    return [p.box((p.r, p.r, p.h), (0, 0, 0), p.paint, True)]


def _ball(p: _Pen) -> list[str]:
    return [p.geom('sphere', (p.r,), (0, 0, 0), p.paint, True)]


def _cup(p: _Pen) -> list[str]:
    out, top, low = p.r + 0.022, p.h * 0.5, -p.h * 0.4
    return [
        p.disc(p.r, p.h, 0, p.paint, True),
        p.disc(p.r * 0.84, 0.0015, p.h, p.dark),
        p.rod((p.r * 0.9, 0, top), (out, 0, top), 0.0055, p.paint),
        p.rod((out, 0, top), (out, 0, low), 0.0055, p.paint),
        p.rod((out, 0, low), (p.r * 0.9, 0, low), 0.0055, p.paint),
    ]


def _bowl(p: _Pen) -> list[str]:
    return [
        p.disc(p.r, p.h * 0.55, p.h * 0.45, p.paint, True),
        p.disc(p.r * 0.62, p.h * 0.5, -p.h * 0.5, p.paint, True),
        p.blob((p.r * 0.86, p.r * 0.86, 0.004), (0, 0, p.h - 0.001), p.dark),
    ]


def _plate(p: _Pen) -> list[str]:
    return [p.disc(p.r, p.h, 0, p.paint, True), p.disc(p.r * 0.66, 0.001, p.h, p.light)]


def _can(p: _Pen) -> list[str]:
    return [
        p.disc(p.r, p.h, 0, p.paint, True),
        p.disc(p.r * 1.01, p.h * 0.06, -p.h * 0.94, METAL),
        p.disc(p.r * 0.74, 0.001, p.h, METAL),
        p.rod((-0.008, 0, p.h), (0.008, 0, p.h), 0.003, IRON),
    ]


def _bottle(p: _Pen) -> list[str]:
    return [
        p.disc(p.r, p.h * 0.66, -p.h * 0.34, p.paint, True),
        p.blob((p.r, p.r, p.h * 0.16), (0, 0, p.h * 0.32), p.paint),
        p.disc(p.r * 0.42, p.h * 0.34, p.h * 0.66, p.paint, True),
        p.disc(p.r * 0.5, p.h * 0.09, p.h * 0.9, PAPER),
        p.disc(p.r * 1.02, p.h * 0.2, -p.h * 0.3, p.light),
    ]


def _carton(p: _Pen) -> list[str]:
    return [
        p.box((p.r, p.r, p.h), (0, 0, 0), p.paint, True),
        p.box((p.r * 1.01, p.r * 1.01, p.h * 0.22), (0, 0, p.h * 0.2), PAPER),
        p.box((p.r, 0.004, 0.01), (0, 0, p.h + 0.008), p.dark),
    ]


def _book(p: _Pen) -> list[str]:
    return [
        p.box((p.r, p.r * 0.72, p.h), (0, 0, 0), p.paint, True),
        p.box((p.r * 0.98, p.r * 0.74, p.h * 0.7), (p.r * 0.06, 0, 0), PAPER),
        p.box((p.r * 0.5, p.r * 0.12, 0.001), (0, p.r * 0.25, p.h), p.light),
    ]


def _banana(p: _Pen) -> list[str]:
    bend = ((-0.8, 0.28), (-0.3, -0.05), (0.3, -0.05), (0.8, 0.28))
    a, b, c, d = ((x * p.r, y * p.r, 0) for x, y in bend)
    return [
        p.rod(a, b, p.h * 0.75, p.paint),
        p.rod(b, c, p.h, p.paint, True),
        p.rod(c, d, p.h * 0.75, p.paint),
        p.rod((p.r * 0.84, p.r * 0.31, 0), (p.r * 0.95, p.r * 0.4, 0), p.h * 0.35, p.dark),
    ]


def _apple(p: _Pen) -> list[str]:
    return [
        p.geom('sphere', (p.r,), (0, 0, 0), p.paint, True),
        p.rod((0, 0, p.h * 0.9), (0.004, 0, p.h * 1.3), 0.004, WOOD),
        p.blob((0.014, 0.007, 0.002), (0.014, 0, p.h * 1.15), LEAF),
    ]


def _spoon(p: _Pen) -> list[str]:
    return [
        p.rod((-p.r, 0, 0), (p.r * 0.5, 0, 0), p.h, p.paint, True),
        p.blob((p.r * 0.36, p.r * 0.25, p.h), (p.r * 0.7, 0, 0), p.paint),
        p.blob((p.r * 0.28, p.r * 0.18, 0.002), (p.r * 0.7, 0, p.h), p.dark),
    ]


def _candle(p: _Pen) -> list[str]:
    return [
        p.disc(p.r, p.h, 0, p.paint, True),
        p.rod((0, 0, p.h), (0, 0, p.h + 0.012), 0.002, INK),
        p.blob((0.007, 0.007, 0.014), (0, 0, p.h + 0.026), FLAME),
    ]


def _lamp(p: _Pen) -> list[str]:
    return [
        p.disc(p.r * 0.6, 0.006, -p.h + 0.006, IRON, True),
        p.rod((0, 0, -p.h), (0, 0, p.h * 0.3), 0.006, IRON),
        p.disc(p.r, p.h * 0.3, p.h * 0.5, p.paint),
        p.disc(p.r * 0.7, p.h * 0.2, p.h * 0.9, p.paint),
    ]


def _hat(p: _Pen) -> list[str]:
    return [
        p.disc(p.r, 0.004, -p.h + 0.004, p.paint, True),
        p.disc(p.r * 0.6, p.h, 0, p.paint, True),
        p.disc(p.r * 0.615, p.h * 0.16, -p.h * 0.6, p.dark),
    ]


def _hammer(p: _Pen) -> list[str]:
    return [
        p.rod((-p.r, 0, 0), (p.r * 0.7, 0, 0), 0.009, p.paint),
        p.box((p.r * 0.2, p.r * 0.55, p.h), (p.r * 0.8, 0, 0), IRON, True),
    ]


_DRAW: dict[str, Callable[[_Pen], list[str]]] = {
    'block': _block,
    'ball': _ball,
    'cup': _cup,
    'bowl': _bowl,
    'plate': _plate,
    'can': _can,
    'bottle': _bottle,
    'carton': _carton,
    'book': _book,
    'banana': _banana,
    'apple': _apple,
    'spoon': _spoon,
    'candle': _candle,
    'lamp': _lamp,
    'hat': _hat,
    'hammer': _hammer,
}


def _join(numbers: Sequence[float]) -> str:
    return ' '.join(f'{number:.5f}' for number in numbers)


def _rgba(rgb: list[float]) -> str:
    return ' '.join(f'{c:.4f}' for c in rgb) + ' 1'
