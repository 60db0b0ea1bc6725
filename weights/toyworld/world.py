"""The toy's world: from a seed to a scene, its caption, its picture and the truth about it.

    python -m weights.toyworld.world -o sheet.png      # a contact sheet

A caption never says where a thing stands or how big it is: layout is the part of
a picture that an edit of the words should leave alone. Some words say that there
is some of a thing but not how much (cloudy, snowy, with flowers, starry, at night), or
that it has a colour but not how strong a one: the amount differs from picture to picture,
so that a model can learn "more". Size, height and side depend on the noun: a castle is
tall and far, a ball small and near. So a model that draws another noun moves things.
"""

import argparse
from random import Random

from PIL import Image, ImageDraw, ImageFont

from minip2p.save import writable
from weights.command import command
from weights.toyworld.picture import Rendered, render
from weights.toyworld.scene import (
    CHILD, COLOURS, DARKNESS, EXTRAS, PENCIL, PLACES, RELATIONS, SATURATION, STYLES, Box, Scene, Thing,
)  # fmt: skip
from weights.toyworld.things import NOUNS

CLIMBERS, PERCHES = ("cat", "dog", "ball", "flower"), ("house", "car", "boat", "castle")  # what may be on what


# ---------------------------------------------------------------- sampling


def sample(seed: int) -> Scene:
    """A random scene; the same for the same seed."""
    rng = Random(seed)
    place = rng.choice(list(PLACES))
    style = rng.choices(STYLES, (60, 20, 20))[0]
    night = rng.random() < 0.38
    horizon = rng.uniform(*PLACES[place].horizon)
    relation = rng.choices((None, *RELATIONS), (30, 36, 14, 20))[0]
    nouns = _nouns(rng, relation)
    boxes = _boxes(rng, nouns, relation, horizon, PLACES[place].gap)
    things: tuple[Thing, ...] = ()
    for noun, box in zip(nouns, boxes):
        touched = tuple(t.colour for t in things) if relation in ("on", "behind") else ()
        things += (_thing(rng, noun, box, style, PLACES[place].hides + touched),)
    light = (rng.uniform(0.12, 0.88), rng.uniform(0.10, 0.18)) if night or rng.random() < 0.35 else None
    return Scene(things, relation, place, style, rng.uniform(*DARKNESS) if night else 0.0,
                 _extras(rng, night, nouns), horizon, light, rng.randrange(2**30), (rng.uniform(0.5, 1.0), rng.uniform(0.3, 1.0)))


def _nouns(rng: Random, relation: str | None) -> list[str]:
    """One or two nouns that make sense in this relation."""
    if relation == "on":
        return [rng.choice(CLIMBERS), rng.choice(PERCHES)]
    names = list(NOUNS)
    if relation is None:
        never_on = [noun for noun in names if noun not in CLIMBERS + PERCHES]
        return [rng.choice(names + never_on)]  # what "on" leaves out gets a second chance here
    return rng.choices(names, k=2) if rng.random() < 0.06 else rng.sample(names, 2)


def _thing(rng: Random, noun: str, box: Box, style: str, hidden: tuple[str, ...]) -> Thing:
    """Colour it: any colour if the caption will name it, else mostly one that the noun likes; never one that would hide it."""
    hidden += ("white",) if style == CHILD else ()
    named = style != PENCIL and rng.random() < 0.55
    wanted = COLOURS if named or rng.random() < 0.25 else NOUNS[noun].likes
    choice = [c for c in wanted if c not in hidden] or [c for c in COLOURS if c not in hidden]
    saturation = 1.0 if rng.random() < 0.2 else rng.uniform(*SATURATION)
    return Thing(noun, rng.choice(choice), box, rng.random() < 0.5, named, saturation, rng.uniform(-0.12, 0.12))


def _extras(rng: Random, night: bool, nouns: list[str]) -> tuple[tuple[str, int], ...]:
    """None, one or two graded words with their amounts."""
    possible = [w for w in EXTRAS if (w != "starry" or night) and (w != "with flowers" or "flower" not in nouns)]
    words = rng.sample(possible, rng.choices((0, 1, 2), (45, 42, 13))[0])
    return tuple((word, rng.randint(*EXTRAS[word])) for word in words)


def _usual(rng: Random, share: tuple[float, float]) -> float:
    """A number between 0 and 1, in four of five cases between the two of `share`."""
    return rng.uniform(*share) if rng.random() < 0.8 else rng.random()


def _boxes(rng: Random, nouns: list[str], relation: str | None, horizon: float, gap: float) -> list[Box]:
    """Where the things stand. Nearer is lower and larger; all of a box stays in the picture."""
    nearest, farthest = 0.96, horizon + gap
    depths = [_usual(rng, NOUNS[noun].depth) for noun in nouns]
    sides = [_usual(rng, NOUNS[noun].side) for noun in nouns]
    sizes = [(height * NOUNS[noun].aspect, height) for noun, height in
             ((noun, rng.uniform(*NOUNS[noun].size) / 64 * (0.82 + 0.3 * depth)) for noun, depth in zip(nouns, depths))]
    feet = [farthest + (nearest - farthest) * depth for depth in depths]
    if relation is None:
        return [_stand(sizes[0], sides[0], feet[0])]
    if relation == "on":
        return _stack(sides[1], nouns, sizes, feet[1])
    (w0, h0), (w1, h1) = sizes
    overlap = rng.uniform(0.12, 0.35) * min(w0, w1) if relation == "behind" else -rng.uniform(0.01, 0.08)
    shrink = min(1.0, 0.96 / (w0 + w1 - overlap))
    w0, h0, w1, h1, overlap = (v * shrink for v in (w0, h0, w1, h1, overlap))
    feet0, feet1 = feet
    if relation == "behind":  # a little farther away than what hides it
        feet0 = max(feet1 - rng.uniform(0.04, 0.14), farthest - 0.03)
    left = 0.02 + (sides[0] + sides[1]) / 2 * (0.96 - (w0 + w1 - overlap))
    x0, x1 = (left, left + w0 - overlap) if sides[0] < sides[1] else (left + w1 - overlap, left)
    return [_boxed(x0, w0, h0, feet0), _boxed(x1, w1, h1, feet1)]


def _boxed(left: float, width: float, height: float, feet: float) -> Box:
    """A box on its feet, moved down if it would leave the picture at the top."""
    feet = min(max(feet, height + 0.02), 0.97)
    return left, feet - height, left + width, feet


def _stand(size: tuple[float, float], across: float, feet: float) -> Box:
    """A box somewhere between the left edge (across = 0) and the right one (1)."""
    width, height = size
    return _boxed(0.02 + across * (0.96 - width), width, height, feet)


def _stack(side: float, nouns: list[str], sizes: list[tuple[float, float]], feet: float) -> list[Box]:
    """The first thing, made smaller, on top of the second."""
    (w0, h0), (w1, h1) = sizes
    top_x, top_y = NOUNS[nouns[1]].top
    small = min(1.0, 0.30 / h0, max(0.62 * w1, 0.25) / w0)
    w0, h0 = w0 * small, h0 * small
    h_all = max(h1, h1 * (1 - top_y) + h0)
    fit = min(1.0, 0.94 / h_all)
    w0, h0, w1, h1 = (v * fit for v in (w0, h0, w1, h1))
    margin = max(0.0, w0 / 2 - top_x * w1)
    left = 0.02 + margin + side * max(0.0, 0.96 - w1 - 2 * margin)
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


# ---------------------------------------------------------------- for people


def example(seed: int, size: int = 64) -> tuple[Image.Image, str, Scene, Rendered]:
    """Picture (size x size pixels), caption, scene and truth of one seed."""
    scene = sample(seed)
    rendered = render(scene, size)
    return rendered.picture, caption(scene, seed), scene, rendered


def sheet(seeds: range, columns: int = 8, zoom: int = 3) -> Image.Image:
    """Many examples with their captions on one picture, each pixel shown as zoom x zoom."""
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
    out = writable(options.out, (".png", ".jpg"))
    sheet(range(options.seed, options.seed + options.count)).save(out)
    print(out)


if __name__ == "__main__":
    command(main)
