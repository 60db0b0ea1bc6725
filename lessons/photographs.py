"""Draws the pictures in lessons/images that the inversion lessons treat as photographs; captions.json says what each shows.

    python -m lessons.photographs

All come from weights/toyworld, and the toy has seen none of them: the ordinary ones have seeds beyond its training's, the
odd ones show what no seed can give. Each odd picture has a twin, the same place with the same things as they usually are,
so that the two can be compared. A photograph of the real world comes with matplotlib and is not copied.
"""

import json
from dataclasses import replace
from pathlib import Path

from matplotlib.cbook import get_sample_data
from PIL import Image, ImageDraw

from minip2p.files import write_whole
from weights.toyworld import world
from weights.toyworld.paint import PAINTS, Pen, paint
from weights.toyworld.scene import COLOURS, PLAIN, RGB, Box, Scene, Thing
from weights.toyworld.scenery import draw_ground, draw_shadow, draw_sky
from weights.toyworld.things import Part, groups

IMAGES = Path(__file__).resolve().parent / "images"
UNSEEN = 100_000  # training drew the seeds 0 to 59,999
PORTRAIT = get_sample_data("grace_hopper.jpg", asfileobj=False)  # Rear Admiral Grace Hopper; US Navy, public domain

ORDINARY = {"house": UNSEEN + 5, "cat_on_a_car": UNSEEN + 23, "dog_and_castle": UNSEEN + 6}  # name -> seed
Piece = tuple[str, RGB, Box, bool]  # noun, colour, box, upside down
CAT, BALL = (0.28, 0.36, 0.66, 0.86), (0.46, 0.56, 0.74, 0.84)
TWINS: dict[str, tuple[str, str, list[Piece]]] = {  # name -> caption, place, pieces, the lower one first
    "cat": ("a cat on the grass", "on the grass", [("cat", COLOURS["orange"], CAT, False)]),
    "cat_odd": ("a cat on the grass", "on the grass", [("cat", PAINTS["black"], CAT, False)]),
    "house_in_snow": ("a house in the snow", "in the snow", [("house", COLOURS["red"], (0.22, 0.34, 0.76, 0.88), False)]),
    "house_in_snow_odd": ("a house in the snow", "in the snow", [("house", COLOURS["red"], (0.22, 0.34, 0.76, 0.88), True)]),
    "ball": ("a ball by a river", "by a river", [("ball", COLOURS["red"], BALL, False)]),
    "ball_odd": ("a ball by a river", "by a river", [("ball", COLOURS["red"], (0.14, 0.10, 0.94, 0.90), False)]),
    "on_the_sand": (
        "a cat on a castle on the sand",
        "on the sand",
        [
            ("castle", COLOURS["pink"], (0.22, 0.30, 0.80, 0.88), False),
            ("cat", COLOURS["purple"], (0.40, 0.31, 0.66, 0.61), False),
        ],
    ),
    "on_the_sand_odd": (
        "a castle on a cat on the sand",
        "on the sand",
        [
            ("cat", COLOURS["purple"], (0.24, 0.34, 0.76, 0.94), False),
            ("castle", COLOURS["pink"], (0.40, 0.04, 0.72, 0.36), False),
        ],
    ),
}


def draw(place: str, pieces: list[Piece], size: int = 64) -> Image.Image:
    """A plain picture by day, as weights/toyworld draws it, but with pieces of any colour and either way up."""
    scene = Scene((), None, place, PLAIN, 0.0, (), world.PLACES[place].horizon[0] + 0.06, None, seed=7)
    flat, owners = (Image.new(mode, (4 * size, 4 * size)) for mode in ("RGB", "L"))
    pen = Pen(scene, ImageDraw.Draw(flat), None, ImageDraw.Draw(owners), 4 * size)
    draw_sky(pen, {})
    draw_ground(pen)
    for index, (noun, colour, box, upside_down) in enumerate(pieces):
        if index == 0:
            draw_shadow(pen, Thing(noun, "white", box, mirrored=False, named=False), index)
        parts = groups(noun, False)
        paint(pen, [[overturned(part) for part in group] for group in parts] if upside_down else parts, box, colour)
    return flat.reduce(4)


def overturned(part: Part) -> Part:
    return replace(part, points=part.points * [1, -1] + [0, 1])


def photograph(name: str) -> tuple[Image.Image, str]:
    """One of lessons/images and what it shows."""
    return Image.open(IMAGES / f"{name}.png"), json.loads((IMAGES / "captions.json").read_text())[name]


def unseen(number: int) -> tuple[Image.Image, str]:
    """As many further pictures as a measurement needs, drawn on the spot, and what they show."""
    return world.example(UNSEEN + number)[:2]


def main() -> None:
    drawn = {name: world.example(seed)[:2] for name, seed in ORDINARY.items()}
    drawn |= {name: (draw(place, pieces), caption) for name, (caption, place, pieces) in TWINS.items()}
    for name, (picture, _) in drawn.items():
        write_whole(IMAGES / f"{name}.png", picture.save)
    captions = json.dumps({name: caption for name, (_, caption) in drawn.items()}, indent=1) + "\n"
    write_whole(IMAGES / "captions.json", lambda path: path.write_text(captions))
    print(f"{len(drawn)} pictures and captions.json in {IMAGES}")


if __name__ == "__main__":
    main()
