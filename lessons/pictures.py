"""Draws the pictures of the inversion lessons: lessons/images/*.png, and captions.json, which says what each one shows.

    python -m lessons.pictures

They are drawings of the toy's world (weights/toyworld) that the toy was not trained on. The unusual ones show what no seed of
that world can give. Each of them has a usual twin: the same place, with the same objects as they usually are.
"""

import json
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageOps

from minip2p.images import open_image
from minip2p.save import write_whole
from weights.toyworld import world
from weights.toyworld.picture import render
from weights.toyworld.scene import Box, Scene, Thing

IMAGES = Path(__file__).resolve().parent / "images"
UNSEEN = 100_000  # the first seed that neither the toy nor its detector was trained on
USUAL = ("cat", "house", "ball", "cat_on_castle")  # each has a twin, NAME_odd


def thing(noun: str, colour: str, box: Box) -> Thing:
    return Thing(noun, colour, box, mirrored=False, named=False)


def scene(place: str, things: tuple[Thing, ...], relation: str | None = None, extras: tuple = ()) -> Scene:
    """A plain scene by day. The box of a thing: (x0, y0, x1, y1) in shares of the picture's side, y pointing down."""
    return Scene(things, relation, place, "", 0.0, extras, world.PLACES[place].horizon[0] + 0.06, None, seed=7)


BALL, HOUSE = thing("ball", "red", (0.46, 0.56, 0.74, 0.84)), thing("house", "orange", (0.24, 0.36, 0.74, 0.86))
SCENES = {  # name -> caption, scene
    "cat_and_house": (
        "a cat next to a house on the grass, cloudy",
        scene(
            "on the grass",
            (thing("cat", "orange", (0.10, 0.52, 0.45, 0.93)), thing("house", "red", (0.48, 0.24, 0.96, 0.76))),
            "next to",
            (("cloudy", 3),),
        ),
    ),
    "cat": ("a cat on the grass", scene("on the grass", (thing("cat", "orange", (0.28, 0.36, 0.66, 0.86)),))),
    "house": ("an orange house by a river", scene("by a river", (HOUSE,))),
    "ball": ("a ball in the snow", scene("in the snow", (BALL,))),
    "cat_on_castle": (
        "a cat on a castle on the sand",
        scene(
            "on the sand",
            (thing("cat", "purple", (0.40, 0.31, 0.66, 0.61)), thing("castle", "pink", (0.22, 0.30, 0.80, 0.88))),
            "on",
        ),
    ),
    "ball_odd": ("a ball in the snow", scene("in the snow", (replace(BALL, box=(0.14, 0.10, 0.94, 0.90)),))),
    "cat_on_castle_odd": (
        "a castle on a cat on the sand",
        scene(
            "on the sand",
            (thing("castle", "pink", (0.40, 0.04, 0.72, 0.36)), thing("cat", "purple", (0.24, 0.34, 0.76, 0.94))),
            "on",
        ),
    ),
}


def black(scene: Scene) -> Image.Image:
    """The scene with its object almost black, which is no colour of the world."""
    drawn = render(scene)
    dark = drawn.picture.convert("L").point(lambda value: value // 5).convert("RGB")
    return Image.composite(dark, drawn.picture, Image.fromarray(drawn.masks[0]))


def upside_down(scene: Scene) -> Image.Image:
    """The scene with its object upside down."""
    drawn = render(scene)
    box = tuple(round(64 * side) for side in scene.things[0].box)
    picture, mask = (ImageOps.flip(image.crop(box)) for image in (drawn.picture, Image.fromarray(drawn.masks[0])))
    empty = render(replace(scene, things=())).picture
    empty.paste(picture, box, mask)
    return empty


def picture(name: str, size: tuple[int, int] = (64, 64)) -> tuple[Image.Image, str]:
    """A picture of lessons/images, resized to (height, width), and its caption."""
    return open_image(IMAGES / f"{name}.png", size), json.loads((IMAGES / "captions.json").read_text())[name]


def main() -> None:
    drawn = {name: (render(scene).picture, caption) for name, (caption, scene) in SCENES.items()}
    for name, draw in (("cat", black), ("house", upside_down)):
        caption, usual = SCENES[name]
        drawn[f"{name}_odd"] = draw(usual), caption
    for name, (image, _) in drawn.items():
        write_whole(IMAGES / f"{name}.png", image.save)
    captions = json.dumps({name: caption for name, (_, caption) in drawn.items()}, indent=1) + "\n"
    write_whole(IMAGES / "captions.json", lambda path: path.write_text(captions))
    print(f"{len(drawn)} pictures and captions.json in {IMAGES}")


if __name__ == "__main__":
    main()
