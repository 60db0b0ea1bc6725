"""What the ten nouns look like: each a few big shapes in a unit box.

A picture book, not a renderer: every function here returns shapes, and
`paint.py` decides how a style puts them on paper. Coordinates run from (0, 0),
the top left of the thing's box, to (1, 1), the bottom right; things face right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np


@dataclass(frozen=True)
class Part:
    """One shape: a filled polygon, or a round brush stroke if it has a width.

    points: (n, 2) in the unit box.
    fill: "main", "light", "dark" (the thing's own colour, lighter, darker), a key
        of `paint.PAINTS`, or "hollow": nothing is painted, yet it belongs to the thing.
    width: of the stroke, as a share of the box's height; 0 for a polygon.
    ink: whether it has an outline.
    """

    points: np.ndarray
    fill: str
    width: float = 0.0
    ink: bool = True


@dataclass(frozen=True)
class Look:
    """How a noun is drawn and placed.

    draw: gives the groups of parts; the parts of one group share one outline.
    aspect: width / height of its box.
    size: smallest and largest height, in 64ths of the picture.
    top: where another thing can stand on it, in the unit box; None if nowhere.
    likes: the colours it usually has when the caption does not name one.
    depth: how near it usually stands, from 0 (far, high in the picture, smaller) to 1 (near, low, larger).
    side: where it usually stands, from 0 (the left edge) to 1 (the right one).
    """

    draw: Callable[[], list[list[Part]]]
    aspect: float
    size: tuple[int, int]
    top: tuple[float, float] | None
    likes: tuple[str, ...]
    depth: tuple[float, float]
    side: tuple[float, float]


def poly(fill: str, *points: tuple[float, float], ink: bool = True) -> Part:
    """A polygon with straight edges."""
    return Part(np.array(points, float), fill, ink=ink)


def rect(fill: str, x0: float, y0: float, x1: float, y1: float, ink: bool = True) -> Part:
    """An upright rectangle."""
    return poly(fill, (x0, y0), (x1, y0), (x1, y1), (x0, y1), ink=ink)


def oval(fill: str, x: float, y: float, rx: float, ry: float, ink: bool = True) -> Part:
    """An ellipse around (x, y), as a polygon of 24 corners so that it can wobble."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return Part(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1), fill, ink=ink)


def ring(fill: str, x: float, y: float, rx: float, ry: float, width: float) -> Part:
    """A circle drawn with a thick brush; what it encloses stays open."""
    points = oval(fill, x, y, rx, ry).points
    return Part(np.concatenate([points, points[:1]]), fill, width)


def stroke(fill: str, width: float, *points: tuple[float, float], ink: bool = True) -> Part:
    """A thick brush stroke through the points."""
    return Part(np.array(points, float), fill, width, ink)


def curve(*points: tuple[float, float], closed: bool = False, steps: int = 5) -> list[tuple[float, float]]:
    """A smooth (Catmull-Rom) line through the points, `steps` points for each of them."""
    known = np.array(points, float)
    if closed:
        known = np.concatenate([known[-1:], known, known[:2]])
    else:
        known = np.concatenate([known[:1], known, known[-1:]])
    before, start, end, after = known[:-3], known[1:-2], known[2:-1], known[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, start, end, after = (a[:, None] for a in (before, start, end, after))
    line = 0.5 * (2 * start + (end - before) * t + (2 * before - 5 * start + 4 * end - after) * t**2
                  + (3 * start - before - 3 * end + after) * t**3)
    line = line.reshape(-1, 2)
    return [tuple(p) for p in (line if closed else np.concatenate([line, known[-1:]]))]


def blob(fill: str, *points: tuple[float, float], ink: bool = True) -> Part:
    """A closed shape with a smooth edge through the points."""
    return poly(fill, *curve(*points, closed=True), ink=ink)


def cat() -> list[list[Part]]:
    """Sits and looks at you: pointed ears, tail curled up."""
    tail = stroke("main", 0.10, *curve((0.36, 0.92), (0.15, 0.92), (0.07, 0.76), (0.13, 0.60), (0.24, 0.58)))
    body = blob("main", (0.48, 0.42), (0.76, 0.42), (0.84, 0.70), (0.86, 0.96), (0.58, 1.0), (0.30, 0.96), (0.34, 0.68))
    ears = [poly("main", (0.34, 0.32), (0.36, 0.0), (0.58, 0.14)), poly("main", (0.62, 0.14), (0.84, 0.0), (0.86, 0.32))]
    face = [oval("black", 0.50, 0.27, 0.045, 0.05, ink=False), oval("black", 0.71, 0.27, 0.045, 0.05, ink=False),
            oval("rose", 0.605, 0.37, 0.05, 0.035, ink=False)]
    paws = [oval("light", 0.50, 0.95, 0.09, 0.05, ink=False), oval("light", 0.70, 0.95, 0.09, 0.05, ink=False)]
    return [[tail], [body, oval("light", 0.60, 0.66, 0.12, 0.17, ink=False), *paws],
            [*ears, oval("main", 0.60, 0.28, 0.28, 0.21), *face]]


def dog() -> list[list[Part]]:
    """Stands on four legs: long muzzle, floppy ear, tail up."""
    legs = [rect("dark", 0.29, 0.6, 0.38, 0.98), rect("dark", 0.50, 0.6, 0.59, 0.98)]
    front = [rect("main", 0.15, 0.6, 0.26, 1.0), rect("main", 0.62, 0.6, 0.73, 1.0)]
    tail = stroke("main", 0.10, *curve((0.19, 0.52), (0.08, 0.40), (0.05, 0.20)))
    body = blob("main", (0.16, 0.44), (0.40, 0.43), (0.60, 0.36), (0.76, 0.36), (0.74, 0.72), (0.46, 0.72), (0.15, 0.76))
    head = [oval("main", 0.68, 0.22, 0.145, 0.20),
            blob("main", (0.66, 0.24), (0.88, 0.22), (0.99, 0.28), (0.97, 0.41), (0.74, 0.44))]
    return [legs, [tail, body, *front, *head],
            [oval("black", 0.955, 0.26, 0.05, 0.06, ink=False), oval("black", 0.755, 0.17, 0.033, 0.05, ink=False)],
            [blob("dark", (0.57, 0.05), (0.65, 0.10), (0.65, 0.40), (0.57, 0.52), (0.49, 0.40), (0.51, 0.16))]]


def car() -> list[list[Part]]:
    """A round little car with two big wheels."""
    cabin = poly("main", (0.18, 0.5), (0.29, 0.04), (0.68, 0.04), (0.84, 0.5))
    body = blob("main", (0.03, 0.50), (0.30, 0.42), (0.80, 0.42), (0.97, 0.54), (0.99, 0.74),
                (0.80, 0.82), (0.20, 0.82), (0.01, 0.74))
    panes = [poly("glass", (0.27, 0.44), (0.34, 0.14), (0.47, 0.14), (0.47, 0.44), ink=False),
             poly("glass", (0.53, 0.44), (0.53, 0.14), (0.65, 0.14), (0.75, 0.44), ink=False)]
    wheels = [part for x in (0.24, 0.77)
              for part in (oval("black", x, 0.79, 0.125, 0.21), oval("metal", x, 0.79, 0.055, 0.09, ink=False))]
    bumper, lamp = rect("dark", 0.05, 0.66, 0.96, 0.76, ink=False), oval("lamp", 0.94, 0.56, 0.045, 0.075, ink=False)
    return [[cabin, body], [*panes, bumper, lamp], wheels]


def bicycle() -> list[list[Part]]:
    """Two thick open wheels and a frame, all in its colour."""
    hollow = [oval("hollow", x, 0.69, 0.19, 0.28, ink=False) for x in (0.215, 0.785)]
    wheels = [ring("main", x, 0.69, 0.175, 0.26, 0.105) for x in (0.215, 0.785)]
    frame = [stroke("main", 0.10, (0.215, 0.69), (0.40, 0.34), (0.67, 0.34), (0.47, 0.69), (0.215, 0.69)),
             stroke("main", 0.10, (0.47, 0.69), (0.37, 0.22)), stroke("main", 0.10, (0.785, 0.69), (0.65, 0.14))]
    seat = [stroke("black", 0.12, (0.29, 0.17), (0.45, 0.17), ink=False),
            stroke("black", 0.10, (0.63, 0.08), (0.78, 0.08), ink=False)]
    return [hollow, [*wheels, *frame], seat]


def house() -> list[list[Part]]:
    """Walls in its colour, a darker roof with a flat ridge, a door and a window."""
    chimney = rect("dark", 0.68, 0.0, 0.82, 0.3)
    walls = rect("main", 0.10, 0.42, 0.90, 1.0)
    roof = poly("dark", (0.0, 0.47), (0.22, 0.08), (0.78, 0.08), (1.0, 0.47))
    return [[chimney], [walls], [roof], [rect("wood", 0.22, 0.64, 0.42, 1.0)], [rect("pane", 0.56, 0.60, 0.79, 0.80)]]


def castle() -> list[list[Part]]:
    """Two towers with battlements, a wall between them, a gate and a flag."""
    def battlements(x0: float, x1: float, y: float, teeth: int) -> list[Part]:
        step = (x1 - x0) / (2 * teeth - 1)
        return [rect("main", x0 + 2 * i * step, y - 0.08, x0 + (2 * i + 1) * step, y + 0.05) for i in range(teeth)]

    flag = [stroke("black", 0.03, (0.15, 0.2), (0.15, 0.02), ink=False), poly("flag", (0.16, 0.0), (0.42, 0.07), (0.16, 0.14))]
    wall = [rect("main", 0.2, 0.56, 0.8, 1.0), *battlements(0.36, 0.64, 0.56, 2)]
    towers = [[rect("main", 0.01, 0.30, 0.31, 1.0), *battlements(0.0, 0.32, 0.30, 2),
               rect("dark", 0.24, 0.33, 0.31, 1.0, ink=False)],
              [rect("main", 0.69, 0.38, 0.99, 1.0), *battlements(0.68, 1.0, 0.38, 2),
               rect("dark", 0.92, 0.41, 0.99, 1.0, ink=False)]]
    gate = poly("wood", (0.39, 1.0), *curve((0.39, 0.80), (0.5, 0.68), (0.61, 0.80)), (0.61, 1.0))
    slits = [rect("slit", 0.10, 0.42, 0.18, 0.56, ink=False), rect("slit", 0.79, 0.50, 0.87, 0.64, ink=False)]
    return [flag, wall, *towers, [gate], slits]


def tree() -> list[list[Part]]:
    """A crown like a cloud in its colour, on a brown trunk."""
    trunk = poly("wood", (0.41, 0.55), (0.59, 0.55), (0.64, 1.0), (0.36, 1.0))
    crown = [oval("main", 0.5, 0.25, 0.32, 0.25), oval("main", 0.25, 0.45, 0.25, 0.2), oval("main", 0.75, 0.45, 0.25, 0.2),
             oval("main", 0.5, 0.52, 0.26, 0.17)]
    shade = [oval("dark", 0.58, 0.58, 0.22, 0.07, ink=False), oval("light", 0.40, 0.17, 0.14, 0.08, ink=False)]
    return [[trunk], [*crown, *shade]]


def boat() -> list[list[Part]]:
    """A hull in its colour under one white sail."""
    mast = stroke("wood", 0.05, (0.50, 0.04), (0.50, 0.70))
    sail = poly("sail", (0.55, 0.04), (0.97, 0.58), (0.55, 0.58))
    hull = blob("main", (0.01, 0.66), (0.02, 0.65), (0.5, 0.68), (0.98, 0.65), (0.99, 0.66),
                (0.92, 0.86), (0.78, 1.0), (0.22, 1.0), (0.08, 0.86))
    keel = blob("dark", (0.10, 0.87), (0.5, 0.90), (0.90, 0.87), (0.77, 0.985), (0.23, 0.985), ink=False)
    return [[mast], [sail], [hull], [keel]]


def ball() -> list[list[Part]]:
    """A big round ball with a stripe around it."""
    edge = curve((0.01, 0.40), (0.5, 0.52), (0.99, 0.40)) + curve((0.97, 0.66), (0.5, 0.78), (0.03, 0.66))
    return [[oval("main", 0.5, 0.5, 0.5, 0.5), poly("stripe", *edge, ink=False),
             oval("light", 0.34, 0.22, 0.13, 0.09, ink=False)]]


def flower() -> list[list[Part]]:
    """One large blossom in its colour, on a stem with two leaves."""
    leaves = [blob("leaf", (0.5, 0.92), (0.28, 0.86), (0.12, 0.68), (0.38, 0.74)),
              blob("leaf", (0.5, 0.92), (0.72, 0.86), (0.88, 0.68), (0.62, 0.74))]
    angle = np.arange(6) * np.pi / 3 + np.pi / 6
    petals = [oval("main", 0.5 + 0.30 * np.cos(a), 0.31 + 0.19 * np.sin(a), 0.205, 0.13) for a in angle]
    return [[stroke("leaf", 0.07, (0.5, 0.45), (0.5, 0.97)), *leaves], petals, [oval("heart", 0.5, 0.31, 0.16, 0.10)]]


NOUNS = {
    "cat": Look(cat, 0.86, (22, 32), None, ("orange", "white", "yellow", "orange"), (0.5, 1.0), (0.0, 0.5)),
    "dog": Look(dog, 1.20, (22, 30), None, ("white", "orange", "yellow", "red"), (0.5, 1.0), (0.4, 1.0)),
    "car": Look(car, 1.75, (17, 24), (0.48, 0.05), ("red", "blue", "yellow", "green"), (0.4, 0.9), (0.5, 1.0)),
    "bicycle": Look(bicycle, 1.50, (21, 28), None, ("red", "blue", "purple", "green"), (0.5, 1.0), (0.0, 0.4)),
    "house": Look(house, 1.0, (30, 42), (0.46, 0.10), ("red", "white", "yellow", "pink"), (0.1, 0.5), (0.5, 1.0)),
    "castle": Look(castle, 1.0, (42, 54), (0.50, 0.50), ("purple", "white", "pink", "blue"), (0.0, 0.3), (0.2, 0.8)),
    "tree": Look(tree, 0.82, (42, 54), None, ("green", "green", "green", "green", "orange", "pink"), (0.1, 0.6), (0.0, 0.4)),
    "boat": Look(boat, 1.0, (26, 36), (0.25, 0.68), ("red", "white", "blue", "orange"), (0.7, 1.0), (0.4, 1.0)),
    "ball": Look(ball, 1.0, (15, 20), None, ("red", "blue", "yellow", "pink"), (0.7, 1.0), (0.1, 0.9)),
    "flower": Look(flower, 0.64, (24, 36), None, ("pink", "red", "yellow", "purple"), (0.6, 1.0), (0.0, 0.5)),
}


# Scenery, drawn the same way.
SUN = [[oval("sun", 0.5, 0.5, 0.5, 0.5)]]
MOON = [[blob("moon", (0.45, 0.0), (0.10, 0.2), (0.0, 0.5), (0.10, 0.8), (0.45, 1.0), (0.9, 0.85),
              (0.55, 0.72), (0.42, 0.5), (0.55, 0.28), (0.9, 0.15))]]
STAR = [[poly("star", (0.5, 0), (0.66, 0.34), (1, 0.5), (0.66, 0.66), (0.5, 1), (0.34, 0.66), (0, 0.5), (0.34, 0.34))]]
CLOUD = [[oval("main", 0.28, 0.62, 0.28, 0.36), oval("main", 0.55, 0.42, 0.30, 0.42), oval("main", 0.78, 0.66, 0.22, 0.32),
          rect("main", 0.2, 0.6, 0.8, 0.98), oval("dark", 0.52, 0.88, 0.40, 0.10, ink=False)]]
BLOSSOM = [[*(oval("main", 0.5 + 0.32 * x, 0.5 + 0.32 * y, 0.3, 0.3) for x, y in ((-1, 0), (1, 0), (0, -1), (0, 1))),
            oval("heart", 0.5, 0.5, 0.25, 0.25, ink=False)]]


@cache
def groups(noun: str, mirrored: bool) -> tuple[tuple[Part, ...], ...]:
    """The noun's parts, group by group; mirrored if it faces left. Kept, because 60,000 pictures ask."""
    def flip(part: Part) -> Part:
        return Part(part.points * [-1, 1] + [1, 0], part.fill, part.width, part.ink) if mirrored else part

    return tuple(tuple(flip(part) for part in group) for group in NOUNS[noun].draw())
