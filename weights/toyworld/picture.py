"""From a scene to its picture, and to the truth about it: which pixels belong to which thing."""

from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from weights.toyworld.paint import PIECES, Pen, mix, paint, shade
from weights.toyworld.scene import CHILD, COLOURS, PENCIL, RGB, Scene
from weights.toyworld.scenery import draw_blossoms, draw_flakes, draw_ground, draw_shadow, draw_sky
from weights.toyworld.things import groups


@dataclass(frozen=True)
class Rendered:
    """A picture (RGB) and which of its pixels show what, as (size, size) bool masks.

    masks, boxes: for each thing, what is visible of it, and the box around that in pixels.
    regions: "ground" (what is below the horizon and no thing), "sky" (the same above it), and for each of the scene's extras its
    pieces ("cloudy": the clouds, "snowy": the flakes, "with flowers": the flowers, "starry": the stars).
    """

    picture: Image.Image
    masks: list[np.ndarray]
    boxes: list[tuple[int, int, int, int]]
    regions: dict[str, np.ndarray]


def render(scene: Scene, size: int = 64, without: str = "") -> Rendered:
    """The picture, size x size pixels, drawn four times too large and reduced, with the truth about each thing.

    without: one of the scene's extras whose pieces (clouds, flakes, flowers, stars) are left out, all else being the same.
    """
    side = 4 * size
    paper = paper_of(scene)
    flat, owners = Image.new("RGB", (side, side), paper), Image.new("L", (side, side))
    cover = Image.new("L", (side, side)) if scene.style else None
    pen = Pen(scene, ImageDraw.Draw(flat), cover and ImageDraw.Draw(cover), ImageDraw.Draw(owners), side)
    amounts = {word: amount for word, amount in scene.extras if word != without}
    draw_sky(pen, amounts)
    draw_ground(pen)
    draw_blossoms(pen, amounts.get("with flowers", 0))
    for index in drawing_order(scene):
        thing = scene.things[index]
        draw_shadow(pen, thing, index)
        colour = shade(COLOURS[thing.colour], thing.saturation, thing.lightness)
        paint(pen, groups(thing.noun, thing.mirrored), thing.box, colour, index + 1)
    flakes = Image.new("L", (side, side))  # in front of everything, yet a thing behind them is still that thing
    draw_flakes(replace(pen, owners=ImageDraw.Draw(flakes)), amounts.get("snowy", 0))
    picture = flat.reduce(4)
    if cover is not None:
        texture = ImageChops.lighter(cover.reduce(4), scribble(scene.style, size, scene.seed % 8))
        picture = Image.composite(picture, Image.new("RGB", (size, size), paper), texture)
    masks = [mask_of(owners, i + 1) for i in range(len(scene.things))]
    return Rendered(picture, masks, [box_of(mask) for mask in masks], regions_of(scene, masks, owners, flakes))


def regions_of(scene: Scene, masks: list[np.ndarray], owners: Image.Image, flakes: Image.Image) -> dict[str, np.ndarray]:
    """The masks of everything but the things; an extra without a visible piece has none."""
    size = owners.width // 4
    below = (np.arange(size)[:, None] + 0.5 > scene.horizon * size).repeat(size, 1)
    free = ~np.any(masks, axis=0) if masks else np.ones((size, size), bool)
    pieces = {word: mask_of(flakes if word == "snowy" else owners, PIECES[word]) for word, _ in scene.extras}
    return {"ground": below & free, "sky": ~below & free} | {word: mask for word, mask in pieces.items() if mask.any()}


def trace(scene: Scene, picture: Image.Image, word: str) -> np.ndarray:
    """(size, size) bool: the pixels of the scene's picture that the pieces of one of its extras clearly change."""
    bare = render(scene, picture.width, without=word).picture
    return np.asarray(ImageChops.difference(picture, bare)).max(2) > 24  # of 255


def mask_of(owners: Image.Image, number: int) -> np.ndarray:
    """(size, size) bool: where at least half of a pixel belongs to the thing with this number."""
    only = [0] * 256
    only[number] = 255
    return np.asarray(owners.point(only).reduce(4)) > 127


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1), in pixels, around a mask; x1 and y1 are the first pixels outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)


def drawing_order(scene: Scene) -> list[int]:
    """Indices of the things, far ones first; what is behind before what hides it; what stands on a thing after it."""
    order = list(range(len(scene.things)))
    if scene.relation == "next to":
        order.sort(key=lambda i: scene.things[i].box[3])
    return order[::-1] if scene.relation == "on" else order


def paper_of(scene: Scene) -> RGB:
    """The colour of what is not painted: paper, dark at night; in a plain picture the sky covers it."""
    if scene.style == CHILD and scene.darkness:
        return mix((92, 106, 178), (14, 18, 48), (scene.darkness - 0.35) / 0.55)
    light = 1 - 0.8 * scene.darkness if scene.style == PENCIL else 1
    return tuple(round(v * light) for v in ((252, 251, 247) if scene.style == CHILD else (246, 246, 246)))


@lru_cache(maxsize=32)
def scribble(style: str, size: int, variant: int) -> Image.Image:
    """Slanted hand-drawn lines (L, size x size): thick for crayon, thin for pencil. A few variants, drawn once each."""
    rng, side = Random(variant), 4 * size
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    step, width, slope = (4.4, 3.3, 0.35) if style == CHILD else (4.2, 1.6, 0.8)
    y = -slope * 64
    while y < 64 + slope * 64:
        line = [(x, y + slope * (x if variant % 2 else 64 - x) + rng.uniform(-0.35, 0.35)) for x in range(-8, 80, 8)]
        points = [(px * side / 64, py * side / 64) for px, py in line]
        draw.line(points, 255 if style == CHILD else 190, round(width * side / 64))
        y += step * rng.uniform(0.85, 1.15)
    return canvas.reduce(4)
