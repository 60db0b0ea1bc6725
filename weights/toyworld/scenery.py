"""What is around the things: sky, ground, shadows, flowers and falling snow.

All lengths are shares of the picture's side; an amount is a number of pieces, as the scene says.
"""

import math
from random import Random

from weights.toyworld.paint import PAINTS, PIECES, Pen, mix, paint, shade, stamp, tone
from weights.toyworld.scene import CHILD, COLOURS, PENCIL, PLACES, PLAIN, RGB, Thing
from weights.toyworld.things import BLOSSOM, CLOUD, MOON, STAR, SUN


def draw_sky(pen: Pen, pieces: dict[str, int]) -> None:
    """Sky, sun or moon, and so many stars and clouds; on paper the sky is left unpainted."""
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
        box = (x - 0.09, y - 0.09, x + 0.09, y + 0.09)
        paint(pen, MOON if scene.darkness else SUN, box, (230, 180, 40), outlined=scene.style != PLAIN, cover=240)
    draw_stars(pen, pieces.get("starry", 0))
    draw_clouds(pen, pieces.get("cloudy", 0))


def draw_stars(pen: Pen, amount: int) -> None:
    """Small diamonds all over the sky."""
    rng = Random(pen.scene.seed + 1)
    for i in range(amount):
        x, y = (i * 0.618 + rng.uniform(0, 0.25)) % 1, rng.uniform(0.03, pen.scene.horizon - 0.04)
        r = rng.uniform(0.026, 0.036)
        paint(pen, STAR, (x - r, y - r, x + r, y + r), owner=PIECES["starry"], outlined=False, cover=255)


def draw_clouds(pen: Pen, amount: int) -> None:
    """Big flat-bottomed clouds, spread over the sky; the more, the darker."""
    rng = Random(pen.scene.seed + 2)
    grey = mix((252, 253, 255), (186, 194, 208), amount / 6)
    start = rng.random()
    for i in range(amount):
        x, y = (start + i * 0.43) % 1, rng.uniform(0.07, min(0.30, pen.scene.horizon - 0.1))
        w, colour = rng.uniform(0.32, 0.44), (150, 176, 214) if pen.scene.style == CHILD else grey
        paint(pen, CLOUD, (x - w / 2, y - 0.26 * w, x + w / 2, y + 0.26 * w), colour, PIECES["cloudy"],
              outlined=pen.scene.style != PLAIN, cover=200 if pen.scene.style == PENCIL else None)


def band(pen: Pen, left: float, right: float, colour: RGB, wave: float = 0.012,
         deep: float | None = None, cover: int = 120) -> None:
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
    saturation = scene.saturations[0]
    colour = (204, 222, 248) if scene.place == "in the snow" and scene.style == CHILD else ground.colour  # else lost on paper
    colour, marks = shade(colour, saturation), shade(ground.marks, saturation)
    slant = rng.uniform(-0.06, 0.06)
    if scene.place == "on a road":
        band(pen, h, h, (150, 190, 112), 0.008)
        band(pen, h + 0.07, h + 0.07, colour, 0, cover=220 if pencil else 140)
    elif scene.place == "on the water":
        band(pen, h, h, colour, 0, cover=170)
    else:
        band(pen, h + slant / 2, h - slant / 2, colour, 0.014)
    if scene.place == "by a river":
        band(pen, h + 0.07 + slant, h + 0.07 - slant, marks, deep=0.18, cover=220 if pencil else 170)
    elif scene.place in ("on the sand", "in the snow"):
        band(pen, h + 0.22 + 2 * slant, h + 0.22 - 2 * slant, mix(colour, marks, 0.55), 0.03)
    draw_marks(pen, rng)


def draw_marks(pen: Pen, rng: Random) -> None:
    """The small signs of a place, strokes in 64ths of the picture wide: waves, tufts, pebbles, the dashes of a road."""
    scene, h = pen.scene, pen.scene.horizon
    ground, road = PLACES[scene.place], scene.place == "on a road"
    rgb = (90, 90, 90) if scene.style == PENCIL and not road else tone(scene, shade(ground.marks, scene.saturations[0]))

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
    ground = shade(PLACES[scene.place].colour, scene.saturations[0])
    rgb = mix(ground, (255, 255, 255), 0.45) if scene.place == "on the water" else mix(ground, (40, 40, 70), 0.28)
    box = (x0, y1 - 0.03, x1, min(1.0, y1 + 0.025))
    pen.flat.ellipse([v * pen.side for v in box], tone(scene, rgb))


def draw_blossoms(pen: Pen, amount: int) -> None:
    """Small flowers on the ground."""
    rng = Random(pen.scene.seed + 4)
    h = pen.scene.horizon + 0.07
    for i in range(amount):
        x, y = (0.05 + i * 0.618 + rng.uniform(0, 0.2)) % 0.94 + 0.03, rng.uniform(h, 0.95)
        r, colour = rng.uniform(0.030, 0.040), COLOURS[rng.choice(("red", "pink", "white", "purple", "yellow"))]
        colour = shade(colour, pen.scene.saturations[1])
        if pen.scene.style == PENCIL:
            colour = (20, 20, 20)
        paint(pen, BLOSSOM, (x - r, y - r, x + r, y + r), colour, PIECES["with flowers"], outlined=pen.scene.style == CHILD)


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
        for canvas, value in ((pen.flat, rgb), (pen.cover, 255), (pen.owners, PIECES["snowy"])):
            if canvas is not None:
                canvas.ellipse((x - r, y - r, x + r, y + r), value)
