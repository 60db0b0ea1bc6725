"""The toy's world: from a seed to a scene, its caption, its picture and the truth about it.

    python -m weights.toyworld.world -o sheet.png      # a contact sheet

A caption never says where a thing stands or how big it is: layout is the part of
a picture that an edit of the words should leave alone. Some words say that there
is some of a thing but not how much (cloudy, snowy, with flowers, starry, at night):
the amount differs from picture to picture, so that a model can learn "more".

All lengths in a Scene are shares of the picture's side, y pointing down.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from weights.toyworld.things import BLOSSOM, CLOUD, MOON, NOUNS, STAR, SUN, Part, groups

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLOURS: dict[str, RGB] = {
    "red": (222, 48, 44), "orange": (246, 140, 36), "yellow": (250, 212, 50), "green": (58, 164, 72),
    "blue": (52, 104, 220), "purple": (138, 72, 190), "pink": (248, 142, 186), "white": (248, 248, 246),
}
PAINTS: dict[str, RGB] = {
    "black": (38, 34, 42), "rose": (232, 120, 130), "glass": (190, 226, 246), "metal": (206, 210, 216), "lamp": (255, 240, 150),
    "wood": (128, 82, 48), "pane": (178, 220, 246), "slit": (56, 48, 66), "sail": (250, 248, 240), "leaf": (44, 128, 56),
    "cloud": (246, 248, 252), "sun": (255, 208, 60), "moon": (252, 240, 176), "star": (255, 246, 180), "flake": (255, 255, 255),
}
GLOWING = {"moon", "star", "pane", "lamp", "flake"}  # what night does not darken


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
EXTRAS = {"cloudy": (1, 5), "snowy": (6, 40), "with flowers": (1, 9), "starry": (4, 25)}  # least and most of each
CLIMBERS, PERCHES = ("cat", "dog", "ball", "flower"), ("house", "car", "boat", "castle")


@dataclass(frozen=True)
class Thing:
    """One object. box: (x0, y0, x1, y1), feet at y1. named: whether the caption says its colour."""

    noun: str
    colour: str
    box: Box
    mirrored: bool
    named: bool


@dataclass(frozen=True)
class Scene:
    """Everything a picture depends on. The relation is of the first thing to the second.

    darkness: 0 by day, else how dark the night is. extras: (word, amount) pairs.
    light: centre of the moon, or of the sun if there is one. seed: of small decorations.
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


@dataclass(frozen=True)
class Rendered:
    """A picture (RGB) and, for each thing, what is visible of it: a (size, size) bool mask, a box in pixels."""

    picture: Image.Image
    masks: list[np.ndarray]
    boxes: list[tuple[int, int, int, int]]


# ---------------------------------------------------------------- sampling


def sample(seed: int) -> Scene:
    """A random scene; the same for the same seed."""
    rng = Random(seed)
    place = rng.choice(list(PLACES))
    style = rng.choices(STYLES, (60, 20, 20))[0]
    night = rng.random() < 0.38
    horizon = rng.uniform(*PLACES[place].horizon)
    relation = rng.choices((None, *RELATIONS), (40, 30, 15, 15))[0]
    nouns = _nouns(rng, relation)
    boxes = _boxes(rng, nouns, relation, horizon, PLACES[place].gap)
    things: tuple[Thing, ...] = ()
    for noun, box in zip(nouns, boxes):
        touched = tuple(t.colour for t in things) if relation in ("on", "behind") else ()
        things += (_thing(rng, noun, box, style, PLACES[place].hides + touched),)
    light = (rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.18)) if night or rng.random() < 0.35 else None
    return Scene(things, relation, place, style, rng.uniform(0.45, 0.85) if night else 0.0,
                 _extras(rng, night, nouns), horizon, light, rng.randrange(2**30))


def _nouns(rng: Random, relation: str | None) -> list[str]:
    """One or two nouns that make sense in this relation."""
    if relation == "on":
        return [rng.choice(CLIMBERS), rng.choice(PERCHES)]
    names = list(NOUNS)
    if relation is None:
        never_on = [noun for noun in names if noun not in CLIMBERS + PERCHES]
        return [rng.choice(names + never_on)]  # what "on" leaves out gets a second chance here
    return rng.choices(names, k=2) if rng.random() < 0.2 else rng.sample(names, 2)


def _thing(rng: Random, noun: str, box: Box, style: str, hidden: tuple[str, ...]) -> Thing:
    """Colour it: any colour if the caption will name it, else one that the noun likes; never one that would hide it."""
    hidden += ("white",) if style == CHILD else ()
    named = style != PENCIL and rng.random() < 0.55
    wanted = COLOURS if named or rng.random() < 0.25 else NOUNS[noun].likes
    choice = [c for c in wanted if c not in hidden] or [c for c in COLOURS if c not in hidden]
    return Thing(noun, rng.choice(choice), box, rng.random() < 0.5, named)


def _extras(rng: Random, night: bool, nouns: list[str]) -> tuple[tuple[str, int], ...]:
    """None, one or two graded words with their amounts."""
    possible = [w for w in EXTRAS if (w != "starry" or night) and (w != "with flowers" or "flower" not in nouns)]
    words = rng.sample(possible, rng.choices((0, 1, 2), (45, 42, 13))[0])
    return tuple((word, rng.randint(*EXTRAS[word])) for word in words)


def _boxes(rng: Random, nouns: list[str], relation: str | None, horizon: float, gap: float) -> list[Box]:
    """Where the things stand. Nearer is lower and larger; all of a box stays in the picture."""
    nearest, farthest = 0.96, horizon + gap
    depth = rng.random()
    sizes = [(height * NOUNS[noun].aspect, height) for noun, height in
             ((noun, rng.uniform(*NOUNS[noun].size) / 64 * (0.82 + 0.3 * depth)) for noun in nouns)]
    feet = farthest + (nearest - farthest) * depth
    if relation is None:
        return [_stand(sizes[0], rng.uniform(0, 1), feet)]
    if relation == "on":
        return _stack(rng, nouns, sizes, feet)
    (w0, h0), (w1, h1) = sizes
    overlap = rng.uniform(0.15, 0.40) * min(w0, w1) if relation == "behind" else -rng.uniform(0.01, 0.08)
    shrink = min(1.0, 0.96 / (w0 + w1 - overlap))
    w0, h0, w1, h1, overlap = (v * shrink for v in (w0, h0, w1, h1, overlap))
    step = rng.uniform(0.04, 0.10) if relation == "behind" else rng.uniform(-0.06, 0.06)
    feet0, feet1 = max(feet - step, farthest - 0.03), feet
    left = 0.02 + rng.random() * (0.96 - (w0 + w1 - overlap))
    x0, x1 = (left, left + w0 - overlap) if rng.random() < 0.5 else (left + w1 - overlap, left)
    return [_boxed(x0, w0, h0, feet0), _boxed(x1, w1, h1, feet1)]


def _boxed(left: float, width: float, height: float, feet: float) -> Box:
    """A box on its feet, moved down if it would leave the picture at the top."""
    feet = min(max(feet, height + 0.02), 0.97)
    return left, feet - height, left + width, feet


def _stand(size: tuple[float, float], across: float, feet: float) -> Box:
    """A box somewhere between the left edge (across = 0) and the right one (1)."""
    width, height = size
    return _boxed(0.02 + across * (0.96 - width), width, height, feet)


def _stack(rng: Random, nouns: list[str], sizes: list[tuple[float, float]], feet: float) -> list[Box]:
    """The first thing, made smaller, on top of the second."""
    (w0, h0), (w1, h1) = sizes
    top_x, top_y = NOUNS[nouns[1]].top
    small = min(1.0, 0.30 / h0, max(0.62 * w1, 0.25) / w0)
    w0, h0 = w0 * small, h0 * small
    h_all = max(h1, h1 * (1 - top_y) + h0)
    fit = min(1.0, 0.94 / h_all)
    w0, h0, w1, h1 = (v * fit for v in (w0, h0, w1, h1))
    margin = max(0.0, w0 / 2 - top_x * w1)
    left = 0.02 + margin + rng.random() * max(0.0, 0.96 - w1 - 2 * margin)
    feet = min(max(feet, h_all * fit + 0.02), 0.97)
    middle, floor = left + top_x * w1, feet - h1 * (1 - top_y) + 0.01
    return [(middle - w0 / 2, floor - h0, middle + w0 / 2, floor), (left, feet - h1, left + w1, feet)]


# ---------------------------------------------------------------- captions


def caption(scene: Scene, seed: int) -> str:
    """What one person might say about the scene; the seed chooses among ways to say it."""
    rng = Random(seed)
    things, relation = scene.things, scene.relation
    if relation == "next to" and rng.random() < 0.5:  # this relation reads the same both ways
        things = things[::-1]
    names = [_name(rng, thing) for thing in things]
    if len(names) == 2 and names[0].split()[1:] == names[1].split()[1:]:
        names[1] = "another " + names[1].split(" ", 1)[1]
    parts = [scene.style, f" {relation} ".join(names)]
    where = [scene.place] if rng.random() > 0.12 else []
    if any(word == "with flowers" for word, _ in scene.extras):
        where.insert(0 if rng.random() < 0.25 else len(where), "with flowers")
    said = " ".join(filter(None, parts + where))
    when, bare = _when(rng, scene)
    if not when:
        return said
    if rng.random() < 0.25:  # mostly late: what is said early is copied into all later words
        return f"{when}, {said}"
    return f"{said}, {when}" if bare else f"{said} {when}"


def _name(rng: Random, thing: Thing) -> str:
    """The thing with an article, and its colour if that is to be named."""
    words = f"{thing.colour} {thing.noun}" if thing.named else thing.noun
    article = rng.choices(("a", "the", "one"), (82, 10, 8))[0]
    return f"{'an' if article == 'a' and words[0] in 'aeiou' else article} {words}"


def _when(rng: Random, scene: Scene) -> tuple[str, bool]:
    """Words for the time and the weather ("" if there is nothing to say), and whether they want a comma before them."""
    weather = [word for word, _ in scene.extras if word != "with flowers"]
    night = scene.darkness > 0
    if not weather:
        return ("at night", False) if night else ("by day" if rng.random() < 0.06 else "", False)
    if "starry" in weather or rng.random() < 0.6:
        return f"on a {' '.join(weather)} {'night' if night else 'day'}", False
    return " and ".join(weather) + (" at night" if night else ""), True


# ---------------------------------------------------------------- drawing


@dataclass(frozen=True)
class Pen:
    """Where to draw: three canvases of the same size, four times the picture's.

    flat: colours without texture. cover: how much of each colour the style's texture must
    let through (None when plain). owners: number of the thing drawn last, from 1.
    """

    scene: Scene
    flat: ImageDraw.ImageDraw
    cover: ImageDraw.ImageDraw | None
    owners: ImageDraw.ImageDraw
    side: int


SOLID = {PLAIN: 255, CHILD: 195, PENCIL: 190}  # how much a thing's fill covers between the texture's lines
INK = {PLAIN: 1.0, CHILD: 1.5, PENCIL: 1.0}  # width of outlines, in 64ths of the picture
WOBBLE = {PLAIN: 0.0, CHILD: 0.010, PENCIL: 0.004}


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Colour a with a share of colour b in it."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b))


def tone(scene: Scene, rgb: RGB, dim: float = 0.85) -> RGB:
    """A colour as this scene shows it: grey in a sketch, darker and bluer at night."""
    if not scene.darkness and scene.style != PENCIL:
        return rgb
    if scene.style == PENCIL:
        grey = round(60 + 0.68 * (0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2]))
        rgb = (grey, grey, grey)
    light = 1 - dim * scene.darkness
    if scene.style == PENCIL:
        return tuple(round(v * light) for v in rgb)
    return round(rgb[0] * light * 0.92), round(rgb[1] * light * 0.95), min(255, round(rgb[2] * light + 14 * scene.darkness))


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
    """Draws groups of parts into a box. First a group's outlines, then its fills, so that its parts grow together."""
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


def render(scene: Scene, size: int = 64) -> Rendered:
    """The picture, drawn four times too large and reduced, with the truth about each thing."""
    side = 4 * size
    paper = paper_of(scene)
    flat, owners = Image.new("RGB", (side, side), paper), Image.new("L", (side, side))
    cover = Image.new("L", (side, side)) if scene.style else None
    pen = Pen(scene, ImageDraw.Draw(flat), cover and ImageDraw.Draw(cover), ImageDraw.Draw(owners), side)
    draw_sky(pen)
    draw_ground(pen)
    amounts = dict(scene.extras)
    draw_blossoms(pen, amounts.get("with flowers", 0))
    for index in drawing_order(scene):
        thing = scene.things[index]
        draw_shadow(pen, thing, index)
        paint(pen, groups(thing.noun, thing.mirrored), thing.box, COLOURS[thing.colour], index + 1)
    draw_flakes(pen, amounts.get("snowy", 0))
    picture = flat.reduce(4)
    if cover is not None:
        texture = ImageChops.lighter(cover.reduce(4), scribble(scene.style, size, scene.seed % 8))
        picture = Image.composite(picture, Image.new("RGB", (size, size), paper), texture)
    masks = [mask_of(owners, i + 1) for i in range(len(scene.things))]
    return Rendered(picture, masks, [box_of(mask) for mask in masks])


def mask_of(owners: Image.Image, number: int) -> np.ndarray:
    """Where at least half of a pixel belongs to the thing with this number."""
    only = [0] * 256
    only[number] = 255
    return np.asarray(owners.point(only).reduce(4)) > 127


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The smallest box (x0, y0, x1, y1) around a mask; x1 and y1 are the first pixels outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else (0, 0, 0, 0)


def drawing_order(scene: Scene) -> list[int]:
    """Far things first; what is behind before what hides it; what stands on a thing after it."""
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
        draw.line([(px * side / 64, py * side / 64) for px, py in line], 255 if style == CHILD else 190, round(width * side / 64))
        y += step * rng.uniform(0.85, 1.15)
    return canvas.reduce(4)


def draw_sky(pen: Pen) -> None:
    """Sky, sun or moon, stars and clouds; on paper the sky is left unpainted."""
    scene, amounts = pen.scene, dict(pen.scene.extras)
    if scene.style == PLAIN:
        top, low = (104, 176, 240), (206, 232, 250)
        grey = max(0.10 * amounts.get("cloudy", 0), 0.018 * amounts.get("snowy", 0))
        top, low = mix(top, (132, 146, 168), grey), mix(low, (170, 180, 196), grey)
        if scene.darkness:
            top, low = mix(top, (40, 60, 150), 0.7), mix(low, (90, 110, 180), 0.7)
            top, low = (mix(c, (8, 10, 34), 0.30 + 1.4 * (scene.darkness - 0.45)) for c in (top, low))
        height = scene.horizon + 0.06
        for i in range(16):
            y0, y1 = (row * height / 16 * pen.side for row in (i, i + 1))
            pen.flat.rectangle((0, y0, pen.side, y1), mix(top, low, i / 15))
    if scene.light and (scene.darkness or amounts.get("cloudy", 0) < 3):
        x, y = scene.light
        paint(pen, MOON if scene.darkness else SUN, (x - 0.09, y - 0.09, x + 0.09, y + 0.09), (230, 180, 40), outlined=scene.style != PLAIN, cover=240)
    draw_stars(pen, amounts.get("starry", 0))
    draw_clouds(pen, amounts.get("cloudy", 0))


def draw_stars(pen: Pen, amount: int) -> None:
    """Small diamonds all over the sky."""
    rng = Random(pen.scene.seed + 1)
    for i in range(amount):
        x, y = (i * 0.618 + rng.uniform(0, 0.25)) % 1, rng.uniform(0.03, pen.scene.horizon - 0.04)
        r = rng.uniform(0.026, 0.036)
        paint(pen, STAR, (x - r, y - r, x + r, y + r), outlined=False, cover=255)


def draw_clouds(pen: Pen, amount: int) -> None:
    """Big flat-bottomed clouds, spread over the sky; the more, the darker."""
    rng = Random(pen.scene.seed + 2)
    grey = mix((252, 253, 255), (186, 194, 208), amount / 6)
    start = rng.random()
    for i in range(amount):
        x, y = (start + i * 0.43) % 1, rng.uniform(0.07, min(0.30, pen.scene.horizon - 0.1))
        w, colour = rng.uniform(0.32, 0.44), (150, 176, 214) if pen.scene.style == CHILD else grey
        paint(pen, CLOUD, (x - w / 2, y - 0.26 * w, x + w / 2, y + 0.26 * w), colour,
              outlined=pen.scene.style != PLAIN, cover=200 if pen.scene.style == PENCIL else None)


def band(pen: Pen, left: float, right: float, colour: RGB, wave: float = 0.012, deep: float | None = None, cover: int = 120) -> None:
    """A strip of ground: from a wavy upper edge, given at both sides, to the picture's foot or `deep` below the edge."""
    phase = pen.scene.seed % 100
    top = [(x / 8, left + (right - left) * x / 8 + wave * math.sin(x * 0.9 + phase)) for x in range(9)]
    bottom = [(1.0, 1.0), (0.0, 1.0)] if deep is None else [(x, y + deep) for x, y in top[::-1]]
    stamp(pen, [v * pen.side for point in top + bottom for v in point], 0, tone(pen.scene, colour), cover, None)
    if pen.scene.style == PENCIL:
        for edge in (top, bottom):
            stamp(pen, [v * pen.side for point in edge for v in point], round(pen.side / 64), (80, 80, 80), 255, None)


def draw_ground(pen: Pen) -> None:
    """The place: a band of its colour and its own marks."""
    scene, rng, h = pen.scene, Random(pen.scene.seed + 3), pen.scene.horizon
    ground, pencil = PLACES[scene.place], scene.style == PENCIL
    colour = (204, 222, 248) if scene.place == "in the snow" and scene.style == CHILD else ground.colour  # else lost on paper
    slant = rng.uniform(-0.06, 0.06)
    if scene.place == "on a road":
        band(pen, h, h, (150, 190, 112), 0.008)
        band(pen, h + 0.07, h + 0.07, colour, 0, cover=220 if pencil else 140)
    elif scene.place == "on the water":
        band(pen, h, h, colour, 0, cover=170)
    else:
        band(pen, h + slant / 2, h - slant / 2, colour, 0.014)
    if scene.place == "by a river":
        band(pen, h + 0.07 + slant, h + 0.07 - slant, ground.marks, deep=0.18, cover=220 if pencil else 170)
    elif scene.place in ("on the sand", "in the snow"):
        band(pen, h + 0.22 + 2 * slant, h + 0.22 - 2 * slant, mix(colour, ground.marks, 0.55), 0.03)
    draw_marks(pen, rng)


def draw_marks(pen: Pen, rng: Random) -> None:
    """The small signs of a place: waves, tufts, pebbles, the dashes of a road."""
    scene, h = pen.scene, pen.scene.horizon
    ground, road = PLACES[scene.place], scene.place == "on a road"
    rgb = (90, 90, 90) if scene.style == PENCIL and not road else tone(scene, ground.marks)

    def mark(width: float, *points: tuple[float, float]) -> None:
        stamp(pen, [v * pen.side for p in points for v in p], round(width * pen.side / 64), rgb, 255, None)

    if road:
        start, y = rng.uniform(-0.3, 0.0), (h + 1.11) / 2
        for i in range(5):
            mark(2.4, (start + i * 0.3, y), (start + i * 0.3 + 0.17, y))
    for _ in range({"on the water": 11, "on the grass": 9, "on the sand": 10}.get(scene.place, 0)):
        x, y = rng.random(), rng.uniform(h + 0.06, 0.97)
        if scene.place == "on the water":
            mark(1.6, (x - 0.09, y), (x - 0.045, y - 0.025), (x, y), (x + 0.045, y - 0.025), (x + 0.09, y))
        elif scene.place == "on the grass":
            mark(1.4, (x - 0.03, y - 0.045), (x, y), (x + 0.03, y - 0.045))
        else:
            mark(2.2, (x, y), (x + 0.012, y))


def draw_shadow(pen: Pen, thing: Thing, index: int) -> None:
    """A soft patch under a thing that ties it to the ground: darker ground, or foam on water."""
    scene, (x0, _, x1, y1) = pen.scene, thing.box
    if scene.style or (scene.relation == "on" and index == 0):
        return
    ground = PLACES[scene.place]
    rgb = mix(ground.colour, (255, 255, 255), 0.45) if scene.place == "on the water" else mix(ground.colour, (40, 40, 70), 0.28)
    box = (x0, y1 - 0.03, x1, min(1.0, y1 + 0.025))
    pen.flat.ellipse([v * pen.side for v in box], tone(scene, rgb))


def draw_blossoms(pen: Pen, amount: int) -> None:
    """Small flowers on the ground."""
    rng = Random(pen.scene.seed + 4)
    h = pen.scene.horizon + 0.07
    for i in range(amount):
        x, y = (0.05 + i * 0.618 + rng.uniform(0, 0.2)) % 0.94 + 0.03, rng.uniform(h, 0.95)
        r, colour = rng.uniform(0.030, 0.040), COLOURS[rng.choice(("red", "pink", "white", "purple", "yellow"))]
        if pen.scene.style == PENCIL:
            colour = (20, 20, 20)
        paint(pen, BLOSSOM, (x - r, y - r, x + r, y + r), colour, outlined=pen.scene.style == CHILD)


def draw_flakes(pen: Pen, amount: int) -> None:
    """Falling snow in front of everything; blue on white paper, grey in a sketch."""
    rng = Random(pen.scene.seed + 5)
    scene = pen.scene
    rgb = PAINTS["flake"]
    if not scene.darkness:
        rgb = {PLAIN: rgb, CHILD: (120, 170, 236), PENCIL: (150, 150, 150)}[scene.style]
    for i in range(amount):
        x, y = (pen.side * ((i * stride + rng.uniform(0, 0.1)) % 1) for stride in (0.618, 0.414))
        r = rng.uniform(0.017, 0.024) * pen.side
        for canvas, value in ((pen.flat, rgb), (pen.cover, 255)):
            if canvas is not None:
                canvas.ellipse((x - r, y - r, x + r, y + r), value)


# ---------------------------------------------------------------- for people


def example(seed: int, size: int = 64) -> tuple[Image.Image, str, Scene, Rendered]:
    """Picture, caption, scene and truth of one seed."""
    scene = sample(seed)
    rendered = render(scene, size)
    return rendered.picture, caption(scene, seed), scene, rendered


def sheet(seeds: range, columns: int = 8, zoom: int = 3) -> Image.Image:
    """Many examples with their captions on one picture."""
    side, text = 64 * zoom, 44
    rows = -(-len(seeds) // columns)
    page = Image.new("RGB", (columns * (side + 8) + 8, rows * (side + text) + 8), (255, 255, 255))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, seed in enumerate(seeds):
        picture, words, _, _ = example(seed)
        x, y = 8 + i % columns * (side + 8), 8 + i // columns * (side + text)
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        lines = [""]
        for word in words.split():
            longer = f"{lines[-1]} {word}".strip()
            lines = [*lines[:-1], longer] if draw.textlength(longer, font) <= side else [*lines, word]
        draw.multiline_text((x, y + side + 1), "\n".join(lines), (0, 0, 0), font, spacing=1)
    return page


def main() -> None:
    """Writes a contact sheet."""
    parser = argparse.ArgumentParser(description="Draw a contact sheet of the toy's world.")
    parser.add_argument("-o", "--out", default="sheet.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=48)
    options = parser.parse_args()
    sheet(range(options.seed, options.seed + options.count)).save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
