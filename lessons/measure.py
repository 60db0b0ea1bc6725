"""Measures of pictures for the lessons' tables.

Measures of pixels (weights/scorecard/measures.py) work on pictures of any model. The detector (weights/toyworld/judge.py) knows only
the toy's world: `detector(chosen)` is None for another model, and every column that needs it is then left out.
"""

from collections.abc import Sequence

import torch
from PIL import Image

from lessons.common import Settings, percent
from minip2p import Recording, Result, StableDiffusion
from minip2p.compose import Chain
from weights.scorecard.beside import Beside
from weights.scorecard.measures import layout
from weights.toyworld import judge
from weights.toyworld.judge import Verdict

# ---------------------------------------------------------------- the detector of the toy's world


def detector(chosen: Settings):
    """A function (picture) -> what the detector sees in it; None unless the model is the toy."""
    if not chosen.is_toy:
        return None
    network = judge.load()
    return lambda picture: network.look([picture.resize((judge.SIDE, judge.SIDE))])[0]


def swapped(seen: Verdict, old: str, new: str) -> bool:
    """True if the picture shows the new object and no longer the old one."""
    return seen.find(new) is not None and seen.find(old) is None


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


# ---------------------------------------------------------------- the surveys of lesson 3


def run_beside(sd: StableDiffusion, recordings: Sequence[Recording], target: str, edits, **options) -> list[Result]:
    """One result per recording: its source, then the target once for each edit (None: no control), all targets in one batch."""
    together = {"edit": Beside(edits), "progress": False, **options}
    return [sd.generate([each.prompt, *[target] * len(edits)], recording=each, **together) for each in recordings]


def swap_row(detect, sources: Sequence[Image.Image], targets: Sequence[Image.Image], old: str, new: str) -> list:
    """[how often the new object is found and the old one is not, layout similarity to the source], over the seeds."""
    found = detect and percent([swapped(detect(picture), old, new) for picture in targets])
    return [found, mean([layout(source, target) for source, target in zip(sources, targets)])]


@torch.no_grad()
def mixed_embeddings(sd: StableDiffusion, detect, prompts, words: tuple[str, str], seeds, steps: int, guidance: float) -> dict:
    """How often pictures show the new word's object and not the old one's, by which tokens come from the target's embedding.

    The text embedding is the source's but for the n-th token or the tokens after it. No map is edited.
    """
    source, target = sd.encode_text(prompts)
    [n] = sd.tokenizer.positions(prompts[1], words[1])
    position = torch.arange(len(source), device=source.device)[:, None]
    chosen = {"the n-th": position == n, "all after it": position > n}
    starts, rows = torch.cat([sd.init_latents(seed) for seed in seeds]), {}
    for name, where in chosen.items():
        cond = torch.where(where, target, source).expand(len(starts), -1, -1)
        uncond = sd.encode_text("").expand(steps, -1, -1)
        *_, (latents, _) = sd.denoise(starts, cond, uncond, guidance, Chain([]), progress=False)
        rows[name] = [percent([swapped(detect(picture), *words) for picture in sd.decode_latents(latents)])]
    return rows
