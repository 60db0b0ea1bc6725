"""Five swaps on seeds 0 to 7, none picked, as a sheet to look at: python -m weights.scorecard.seeds

Writes weights/scorecard/seeds.png and prints a table: in how many of eight pictures the swap succeeds, and in how many the object
that the edit does not name keeps its place and its colour. It keeps its place if its box overlaps its old one by more than half.
"""

import io
from pathlib import Path

from PIL import Image

from minip2p import LocalBlend, StableDiffusion, Swap
from minip2p.figures import grid
from minip2p.save import write_whole
from weights.command import command
from weights.scorecard.measures import overlap
from weights.toyworld import judge
from weights.toyworld.sizes import SIDE

HERE = Path(__file__).parent
SWAPS = (  # prompt, the swapped noun, the new one, the noun that stays
    ("a cat next to a house in the snow", "cat", "dog", "house"),
    ("a car next to a castle", "car", "bicycle", "castle"),
    ("a house next to a tree on the grass", "house", "castle", "tree"),
    ("a ball next to a dog on the sand", "ball", "flower", "dog"),
    ("a bicycle next to a tree on a road", "bicycle", "car", "tree"),
)
SEEDS, STEPS = range(8), 25


def main() -> None:
    sd, looker = StableDiffusion.load(HERE.parent / "toy", device="cpu"), judge.load()
    sheet, labels = [], []
    for prompt, old, new, other in SWAPS:
        prompts = [prompt, prompt.replace(old, new)]
        blend = LocalBlend(sd.tokenizer, prompts, [old, new])
        edits = {
            "no control": None,
            "Prompt-to-Prompt": Swap(sd.tokenizer, prompts),
            "and blend": Swap(sd.tokenizer, prompts, blend=blend),
        }
        recordings = [sd.record(prompt, seed=seed, steps=STEPS, progress=False) for seed in SEEDS]
        for name, edit in edits.items():
            pairs = [sd.generate(prompts, recording=recording, edit=edit, progress=False).images for recording in recordings]
            sources, targets = zip(*pairs)
            if name == "no control":
                sheet.append(sources)
                labels.append(f"{old} -> {new}")
            sheet.append(targets)
            labels.append(name)
            seen = [
                [found.find(other) for found in looker.look([p.resize((SIDE, SIDE)) for p in pictures])]
                for pictures in (sources, targets)
            ]
            place = sum(overlap(a, b) > 0.5 for a, b in zip(*seen))
            colour = sum(bool(a and b and a.colour == b.colour) for a, b in zip(*seen))
            verdicts = looker.look([picture.resize((SIDE, SIDE)) for picture in targets])
            swapped = sum(verdict.find(new) is not None and verdict.find(old) is None for verdict in verdicts)
            print(
                f"{prompt}, {old} -> {new}, {name}: {other} keeps place {place}, colour {colour}; swapped {swapped}", flush=True
            )
    figure = grid(sheet, labels, [f"seed {seed}" for seed in SEEDS], f"{STEPS} steps, guidance 7.5")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=60)
    palette = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    write_whole(HERE / "seeds.png", lambda path: palette.save(path, optimize=True))
    print("->", HERE / "seeds.png")


if __name__ == "__main__":
    command(main)
