"""How a style puts shapes on paper: the colours by day and night, the strokes of each hand, the three canvases.

The scene measures in shares of the picture's side, a canvas in its own pixels: Pen.side of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageDraw

from weights.toyworld.scene import CHILD, COLOURS, PENCIL, PLAIN, RGB, Box, Scene
from weights.toyworld.things import Part

PAINTS: dict[str, RGB] = {
    "black": (38, 34, 42), "rose": (232, 120, 130), "glass": (190, 226, 246), "metal": (206, 210, 216),
    "lamp": (255, 240, 150), "wood": (128, 82, 48), "pane": (178, 220, 246), "slit": (56, 48, 66),
    "sail": (250, 248, 240), "leaf": (44, 128, 56), "sun": (255, 208, 60),
    "moon": (252, 240, 176), "star": (255, 246, 180), "flake": (255, 255, 255),
}
GLOWING = {"moon", "star", "pane", "lamp", "flake"}  # what night does not darken
SOLID = {PLAIN: 255, CHILD: 195, PENCIL: 190}  # how much a thing's fill covers between the texture's lines, of 255
INK = {PLAIN: 1.0, CHILD: 1.5, PENCIL: 1.0}  # width of outlines, in 64ths of the picture
WOBBLE = {PLAIN: 0.0, CHILD: 0.010, PENCIL: 0.004}  # how far an edge strays, in shares of the side


PIECES = {"cloudy": 11, "starry": 12, "with flowers": 13, "snowy": 14}  # the numbers of their pieces on the canvas `owners`


@dataclass(frozen=True)
class Pen:
    """Where to draw: three canvases of the same size, four times the picture's.

    flat: colours without texture. cover: how much of each colour the style's texture must
    let through (None when plain). owners: number of what was drawn last: a thing, from 1, or one of PIECES; 0 is neither.
    """

    scene: Scene
    flat: ImageDraw.ImageDraw
    cover: ImageDraw.ImageDraw | None
    owners: ImageDraw.ImageDraw
    side: int


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Colour a with a share (0 to 1) of colour b in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


def shade(rgb: RGB, saturation: float, lightness: float = 0.0) -> RGB:
    """A colour so far on the way from a light grey (0) to itself (1), then mixed with white (lightness > 0) or with black (< 0)."""
    rgb = mix((222, 222, 224), rgb, saturation)
    return mix(rgb, (255, 255, 255) if lightness > 0 else (0, 0, 0), abs(lightness))


def tone(scene: Scene, rgb: RGB, dim: float = 0.85) -> RGB:
    """A colour as this scene shows it: grey in a sketch, at night bluer and darker by `dim` of the darkness."""
    if not scene.darkness and scene.style != PENCIL:
        return rgb
    if scene.style == PENCIL:
        grey = round(60 + 0.68 * (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]))
        rgb = (grey, grey, grey)
    light = 1 - dim * scene.darkness
    if scene.style == PENCIL:
        return tuple(round(v * light) for v in rgb)
    red, green, blue = rgb[0] * light * 0.92, rgb[1] * light * 0.95, rgb[2] * light + 14 * scene.darkness
    return round(red), round(green), min(255, round(blue))


def fill_of(fill: str, colour: RGB) -> RGB:
    """What a part's fill means on a thing of this colour, in daylight."""
    if fill in PAINTS:
        return PAINTS[fill]
    pale, yellowish = min(colour) > 200, colour[0] > 230 and colour[2] < 80
    if fill == "light":
        return mix(colour, (255, 255, 255), 0.42)
    if fill == "dark":
        return mix(colour, (150, 160, 190), 0.6) if pale else mix(colour, (40, 20, 50), 0.32)
    if fill == "flag":
        return COLOURS["red"] if pale else colour
    if fill == "stripe":
        return (160, 178, 206) if pale else (250, 248, 244)
    if fill == "heart":
        return (150, 84, 36) if yellowish else COLOURS["yellow"]
    return colour


def paint_of(scene: Scene, fill: str, colour: RGB) -> RGB:
    """The colour of a part of a thing in this scene."""
    rgb = fill_of(fill, colour)
    if fill in GLOWING and scene.darkness:
        return tone(replace(scene, darkness=0.0), (255, 222, 120) if fill == "pane" else mix(rgb, (90, 90, 90), 0.1))
    return tone(scene, rgb, dim=0.45 if scene.style == CHILD else 0.60)  # less than the ground: a red cat stays red


def line_of(scene: Scene, fill: str, colour: RGB) -> RGB:
    """The colour of a part's outline: nearly black, but a crayon's own colour pressed harder."""
    if scene.style == CHILD:
        rgb = fill_of(fill, colour)
        return tone(scene, mix(rgb, (60, 70, 110), 0.5) if min(rgb) > 200 else mix(rgb, (20, 10, 30), 0.45), 0.6)
    return (40, 40, 40) if scene.style == PENCIL else tone(scene, (36, 30, 44), 0.5)


def stamp(pen: Pen, points: list[float], width: int, rgb: RGB | None, cover: int | None, owner: int | None) -> None:
    """One polygon (width 0) or round brush stroke on all canvases; points are x, y, x, y, ... in canvas pixels."""
    corners = range(0, len(points), 2) if len(points) <= 20 else (0, len(points) - 2)
    r = (width - 1) / 2
    for canvas, value in ((pen.flat, rgb), (pen.cover, cover), (pen.owners, owner)):
        if canvas is None or value is None:
            continue
        if not width:
            canvas.polygon(points, value)
            continue
        canvas.line(points, value, width)
        if width > 2:
            for i in corners:
                canvas.ellipse((points[i] - r, points[i + 1] - r, points[i] + r, points[i + 1] + r), value)


def paint(pen: Pen, shapes: Sequence[Sequence[Part]], box: Box, colour: RGB = (0, 0, 0),
          owner: int | None = None, outlined: bool = True, cover: int | None = None) -> None:
    """Draws groups of parts into a box: first a group's outlines, then its fills, so that its parts grow together."""
    scene, (x0, y0, x1, y1), side = pen.scene, box, pen.side
    cover = SOLID[scene.style] if cover is None else cover
    ink = round(INK[scene.style] * side / 64)
    for group in shapes:
        placed = []
        for part in group:
            points = part.points * (x1 - x0, y1 - y0) + (x0, y0)
            if scene.style:
                points = points + WOBBLE[scene.style] * np.sin(points[:, ::-1] * 17 + (scene.seed % 63, scene.seed % 61))
            width = max(1, round(part.width * (y1 - y0) * side)) if part.width else 0
            placed.append((part, (points * side).ravel().tolist(), width))
        if outlined:
            for part, points, width in placed:
                if part.ink:
                    edge = points if width else points + points[:4]
                    line = line_of(scene, part.fill, colour)
                    stamp(pen, edge, width + (ink if width and scene.style == CHILD else 2 * ink), line, 255, owner)
        for part, points, width in placed:
            rgb = None if part.fill == "hollow" else paint_of(scene, part.fill, colour)
            inside = not part.ink and rgb is not None  # a detail covers nothing that is not the thing's already
            stamp(pen, points, width, rgb, rgb and (cover if part.ink else max(cover, 220)), None if inside else owner)
