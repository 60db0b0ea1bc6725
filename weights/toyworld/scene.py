"""What the toy's world is made of, in words and numbers: a Scene is everything that a picture depends on.

All lengths are shares of the picture's side, y pointing down; colours are 0..255.
"""

from dataclasses import dataclass

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (222, 48, 44), "orange": (246, 140, 36), "yellow": (250, 212, 50),
    "green": (58, 164, 72), "blue": (52, 104, 220), "purple": (138, 72, 190),
    "pink": (248, 142, 186), "white": (248, 248, 246),
}


@dataclass(frozen=True)
class Ground:
    """A place: its colours, the horizons it has, how far below them feet may be, whom it would hide."""

    colour: RGB
    marks: RGB
    horizon: tuple[float, float]
    gap: float
    hides: tuple[str, ...]


PLACES = {
    "on the grass": Ground((122, 196, 92), (84, 158, 66), (0.46, 0.60), 0.12, ("green",)),
    "on the sand": Ground((240, 214, 148), (216, 182, 112), (0.54, 0.68), 0.10, ("yellow", "orange")),
    "in the snow": Ground((238, 243, 251), (198, 214, 236), (0.42, 0.56), 0.12, ("white",)),
    "on the water": Ground((66, 146, 214), (160, 210, 244), (0.30, 0.46), 0.16, ("blue",)),
    "on a road": Ground((126, 126, 134), (246, 244, 236), (0.50, 0.62), 0.16, ()),
    "by a river": Ground((134, 204, 104), (66, 146, 214), (0.34, 0.44), 0.34, ("green", "blue")),
}
STYLES = ("", "a child's drawing of", "a pencil sketch of")
PLAIN, CHILD, PENCIL = STYLES
RELATIONS = ("next to", "on", "behind")
EXTRAS = {"cloudy": (1, 5), "snowy": (6, 44), "with flowers": (1, 16), "starry": (3, 28)}  # least and most of each
DARKNESS, SATURATION = (0.40, 0.88), (0.3, 1.0)  # of nights; of the colours of things


@dataclass(frozen=True)
class Thing:
    """One object. box: (x0, y0, x1, y1), feet at y1. named: whether the caption says its colour.

    saturation: from 0 (a light grey) to 1 (the colour of COLOURS). lightness: below 0 darker, above 0 lighter. No caption
    says either.
    """

    noun: str
    colour: str
    box: Box
    mirrored: bool
    named: bool
    saturation: float = 1.0
    lightness: float = 0.0


@dataclass(frozen=True)
class Scene:
    """Everything a picture depends on. The relation is of the first thing to the second.

    darkness: 0 by day, else how dark the night is. extras: (word, amount) pairs.
    light: centre of the moon, or of the sun if there is one. seed: of small decorations.
    saturations: of the ground and of the small flowers, as a thing's.
    """

    things: tuple[Thing, ...]
    relation: str | None
    place: str
    style: str
    darkness: float
    extras: tuple[tuple[str, int], ...]
    horizon: float
    light: tuple[float, float] | None
    seed: int
    saturations: tuple[float, float] = (1.0, 1.0)
