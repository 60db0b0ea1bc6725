"""The judge: which things a picture of the toy's world shows, where, in which colour, place, time, style and weather.

    python -m weights.toyworld.judge            # how often it is right on unseen drawn pictures, and through the VAE
    python -m weights.toyworld.train_judge      # trains it anew, about 70 minutes on two CPU cores

A detector in the manner of CenterNet (Zhou et al. 2019, arXiv 1904.07850): on a 16 x 16 grid, for each noun a heat map of
its centres, and at each cell the size of the box, the colour and the weather; beside it a few answers about the whole picture.
It learns from drawn pictures only, as they are, slightly blurred, and through the toy's VAE: it never sees a generated one.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from minip2p import StableDiffusion
from weights.command import command
from weights.toyworld import world
from weights.toyworld.picture import trace
from weights.toyworld.scene import COLOURS, EXTRAS, PENCIL, PLACES, STYLES, Scene
from weights.toyworld.sizes import SIDE
from weights.toyworld.things import NOUNS
from weights.toyworld.train_vae import as_images

FILE = Path(__file__).with_suffix(".safetensors")
GRID = 16  # cells along a side of the heat maps
WIDTHS = (40, 72, 96)  # channels at 32 x 32, 16 x 16, 8 x 8
SURE = 0.4  # a peak of a heat map above this is a thing; chosen on drawn pictures
SHOWN = 8  # weather that changes fewer pixels of a drawn picture (of 4,096) is hidden: nobody can be asked to see it
NEAR = 0.15  # an amount is right if it is estimated to within this share of the most
UNSEEN = 2_000_000  # first seed of the pictures it is tested on
WEATHER = list(EXTRAS)
PARTS = {"nouns": len(NOUNS), "box": 4, "colour": len(COLOURS), "weather": len(WEATHER)}  # what each cell answers
WHOLE = {"place": len(PLACES), "style": len(STYLES), "night": 1, "amounts": 1 + len(WEATHER)}


@dataclass(frozen=True)
class Found:
    """One thing the judge sees. box: (x0, y0, x1, y1) in pixels. colour: None in a pencil sketch, which is grey."""

    noun: str
    score: float
    box: tuple[float, float, float, float]
    colour: str | None


@dataclass(frozen=True)
class Verdict:
    """What the judge sees in one picture. amounts: how much darkness and how much of each weather, 0 to about 1."""

    things: tuple[Found, ...]
    place: str
    style: str
    night: bool
    weather: frozenset[str]
    amounts: dict[str, float]

    def find(self, noun: str) -> Found | None:
        """The thing with this noun of which the judge is most sure."""
        return max((thing for thing in self.things if thing.noun == noun), key=lambda thing: thing.score, default=None)


# ---------------------------------------------------------------- the network


def conv(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.GroupNorm(8, width), nn.SiLU())


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(conv(width, width), conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Judge(nn.Module):
    """Images (B, 3, 64, 64) in [-1, 1] -> what each cell says (B, 26, 16, 16), what is said of the whole (B, 15)."""

    def __init__(self):
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.fine = nn.Sequential(conv(3, fine, 2), Residual(fine))
        self.middle = nn.Sequential(conv(fine, middle, 2), Residual(middle))
        self.coarse = nn.Sequential(conv(middle, coarse, 2), Residual(coarse))
        self.lift = nn.Conv2d(coarse, middle, 1)
        self.both = nn.Sequential(Residual(middle), Residual(middle))  # a cell with its surroundings
        self.cells = nn.Conv2d(middle, sum(PARTS.values()), 1)
        self.whole = nn.Sequential(nn.Linear(2 * sum(WIDTHS), 96), nn.SiLU(), nn.Linear(96, sum(WHOLE.values())))
        for rare in (self.cells.bias[: len(NOUNS)], self.cells.bias[-len(WEATHER) :]):  # most cells show none of it
            nn.init.constant_(rare, -3.0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.fine(images)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        both = self.both(middle + F.interpolate(self.lift(coarse), scale_factor=2))
        pooled = [pool(level) for level in (fine, both, coarse) for pool in (means, peaks)]
        return self.cells(both), self.whole(torch.cat(pooled, 1))

    @torch.no_grad()
    def look(self, pictures: Sequence[Image.Image]) -> list[Verdict]:
        """What is to be seen in pictures of 64 x 64 pixels."""
        device = self.cells.weight.device
        images = as_images(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]), device)
        answers = [self(part) for part in images.split(64)]
        cells, whole = (torch.cat(parts).float().cpu() for parts in zip(*answers))
        return [verdict(*pair) for pair in zip(cells, whole)]


def means(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def peaks(x: Tensor) -> Tensor:
    return x.amax((2, 3))


def verdict(cells: Tensor, whole: Tensor) -> Verdict:
    """Numbers of one picture, (26, 16, 16) and (15,), -> words."""
    answers = dict(zip(WHOLE, whole.split(list(WHOLE.values()))))
    style = STYLES[answers["style"].argmax()]
    nouns, boxes, colours, weather = cells.split(list(PARTS.values()))
    scores = nouns.sigmoid()
    peaked = scores == F.max_pool2d(scores[None], 3, 1, 1)[0]  # one centre, not its neighbours too
    things = []
    for kind, row, column in ((scores > SURE) & peaked).nonzero().tolist():
        x0, y0, x1, y1 = (boxes[:, row, column].clamp(-1, 6) * SIDE / 4).tolist()
        x, y = ((v + 0.5) * SIDE / GRID for v in (column, row))
        colour = None if style == PENCIL else list(COLOURS)[colours[:, row, column].argmax()]
        things.append(Found(list(NOUNS)[kind], scores[kind, row, column].item(), (x - x0, y - y0, x + x1, y + y1), colour))
    there = frozenset(word for word, answer in zip(WEATHER, weather.amax((1, 2))) if answer > 0)
    amounts = dict(zip(["darkness", *WEATHER], answers["amounts"].tolist()))
    return Verdict(tuple(things), list(PLACES)[answers["place"].argmax()], style, bool(answers["night"] > 0), there, amounts)


def load(device: str | torch.device = "cpu", file: Path | None = None) -> Judge:
    """The judge in this file; None is the one that is shipped."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(file or FILE).items()})
    return judge.eval().to(device)


# ---------------------------------------------------------------- right or wrong


def compare(seen: Verdict, scene: Scene, words: str) -> dict[str, list[bool]]:
    """Each thing that a caption says of its scene: does the picture show it? An empty list where nothing is said.

    nouns: exactly those things, neither more nor fewer. noun: each by itself. colour: of those found that the caption
    gives one. place, time, style as the caption has them; without "night" it means day. weather: each word that is said;
    no weather: each that is not said is not to be seen.
    """
    wanted, seen_nouns = Counter(t.noun for t in scene.things), Counter(t.noun for t in seen.things)
    found = list((wanted & seen_nouns).elements())
    told = Counter((t.noun, t.colour) for t in scene.things if t.named and t.noun in found)
    shown = told & Counter((t.noun, t.colour) for t in seen.things)
    return {
        "nouns": [wanted == seen_nouns],
        "noun": [True] * len(found) + [False] * (wanted.total() - len(found)),
        "colour": [True] * shown.total() + [False] * (told.total() - shown.total()),
        "place": [seen.place == scene.place] if scene.place in words else [],
        "time": [seen.night == (scene.darkness > 0)],
        "style": [seen.style == scene.style],
        "weather": [word in seen.weather for word, _ in scene.extras],
        "no weather": [word not in seen.weather for word in WEATHER if word not in dict(scene.extras)],
    }


# ---------------------------------------------------------------- how good it is


@torch.no_grad()
def through_vae(sd: StableDiffusion, pictures: np.ndarray) -> np.ndarray:
    """(B, 64, 64, 3) uint8 -> what the VAE makes of it, the same shape."""
    parts = []
    for part in (pictures[i : i + 50] for i in range(0, len(pictures), 50)):
        images = sd.vae.decode(sd.vae.encode(as_images(part, sd.device).to(sd.dtype)))
        parts.append(((images.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(parts)


def test(judge: Judge, sd: StableDiffusion, first: int, count: int) -> dict[str, dict[str, list[bool]]]:
    """Right or wrong on unseen drawn pictures, as they are and through the VAE; all counts as said in the caption.

    Beside what `compare` says, of weather that can be seen at all: is it seen, is its amount (and the darkness) right?
    """
    examples = [world.example(seed, SIDE) for seed in range(UNSEEN + first, UNSEEN + first + count)]
    drawn = np.stack([np.asarray(picture) for picture, *_ in examples])
    shown = [
        [extra for extra in scene.extras if trace(scene, picture, extra[0]).sum() >= SHOWN] for picture, _, scene, _ in examples
    ]
    table = {}
    for name, pictures in (("drawn", drawn), ("through the VAE", through_vae(sd, drawn))):
        table[name] = {}
        for seen, (_, _, scene, _), weather in zip(judge.look([Image.fromarray(p) for p in pictures]), examples, shown):
            told = replace(scene, things=tuple(replace(thing, named=scene.style != PENCIL) for thing in scene.things))
            answers = compare(seen, told, scene.place)
            answers["weather that shows"] = [word in seen.weather for word, _ in weather]
            amounts = {"darkness": scene.darkness} | {word: amount / EXTRAS[word][1] for word, amount in weather}
            answers["amounts"] = [abs(seen.amounts[word] - amount) < NEAR for word, amount in amounts.items() if amount]
            for what, right in answers.items():
                table[name].setdefault(what, []).extend(right)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=str(FILE.parent.parent / "toy"), help="the model whose VAE is used")
    sd, judge = StableDiffusion.load(parser.parse_args().weights, device="cpu"), load()
    drawn, through = test(judge, sd, 0, 500).values()
    print(f"{'right on 500 unseen pictures':30}{'drawn':>10}{'through the VAE':>18}")
    for what, right in drawn.items():
        print(f"{what:30}{np.mean(right):>10.1%}{np.mean(through[what]):>18.1%}")


if __name__ == "__main__":
    command(main)
