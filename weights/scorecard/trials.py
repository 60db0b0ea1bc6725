"""The scorecard's trials: functions of a Bench and a number, which return what they measured as plain values.

A trial's prompts, scenes and seeds follow from its number alone, and no training saw them.
"""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minip2p import LocalBlend, Reweight, StableDiffusion, Swap, invert
from minip2p.attention import Site
from weights.scorecard.beside import Beside, only_nth
from weights.scorecard.measures import layout, outside, overlap, psnr, quantity
from weights.toyworld import world
from weights.toyworld.judge import Judge, compare, test
from weights.toyworld.scene import PLACES
from weights.toyworld.things import NOUNS

UNSEEN = 3_000_000  # first of the seeds of scenes that neither the toy nor the judge was trained on
GUIDANCE = 5.0  # of single pictures, of re-weighting and of inverted pictures
EDIT_GUIDANCE = 7.5
BATCH = 10
LEVELS = (801, 601, 301, 1)  # timesteps at which a map's strongest cell is looked at
TIMESTEPS = (901, 801, 701, 601, 501, 401, 301, 201, 101, 1)
WEIGHTS = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
GRADED = {  # the word that is re-weighted, and what the prompt says after noun and place
    "night": " at night", "cloudy": ", cloudy", "starry": " on a starry night", "snowy": ", snowy", "flowers": " with flowers",
    "red": "",
}  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """What every trial is given. steps: of every generated picture."""

    sd: StableDiffusion
    judge: Judge
    steps: int

    def generate(self, prompts: list[str], seeds: list[int], guidance: float, edit=None) -> list[Image.Image]:
        noise = torch.cat([self.sd.init_latents(seed) for seed in seeds])
        return self.sd.generate(prompts, latents=noise, steps=self.steps, guidance=guidance, edit=edit, progress=False).images


def scenes(first: int, things: int, count: int) -> list[tuple[int, world.Scene]]:
    """(seed, scene) of the next scenes with so many objects, all of different nouns."""
    found, seed = [], first
    while len(found) < count:
        scene = world.sample(seed)
        if len(scene.things) == len({thing.noun for thing in scene.things}) == things:
            found.append((seed, scene))
        seed += 1
    return found


# ---------------------------------------------------------------- single pictures


def prompt(bench: Bench, number: int) -> list[dict]:
    """Captions of unseen scenes with one object (even numbers) or two: what does the judge find of what they say?"""
    things = 1 + number % 2
    chosen = scenes(UNSEEN + 1000 * number, things, BATCH)
    prompts = [world.caption(scene, seed) for seed, scene in chosen]
    seen = bench.judge.look(bench.generate(prompts, [seed for seed, _ in chosen], GUIDANCE))
    return [
        {"things": things, "right": compare(verdict, scene, words)} for (_, scene), words, verdict in zip(chosen, prompts, seen)
    ]


def truth(bench: Bench, number: int) -> dict:
    """The judge itself on unseen drawn pictures, as they are and through the VAE."""
    return test(bench.judge, bench.sd, 50 * number, 50)


# ---------------------------------------------------------------- attention maps


@torch.no_grad()
def maps(bench: Bench, number: int) -> list[dict]:
    """An unseen drawn pair with noise of ten levels: the nouns' maps against the objects' known masks, one dict per object."""
    sd = bench.sd
    [(seed, _)] = scenes(UNSEEN + 500_000 + 100 * number, 2, 1)
    picture, words, scene, drawn = world.example(seed)
    layers = cross_maps(sd, picture, words, seed)
    finest = {site: layer for site, layer in layers.items() if site.height == 16}
    tokens = torch.stack(list(finest.values())).mean(0)  # (levels, P, T)
    covers = [F.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], 16).flatten() for mask in drawn.masks]
    end = 1 + len(sd.tokenizer.encode(words).ids)
    share = torch.stack([layer[..., 1:end].sum(-1).mean() for site, layer in layers.items() if site.height in (16, 8)]).mean()
    rows = []
    for own, thing in enumerate(scene.things):
        levels = tokens[..., sd.tokenizer.positions(words, thing.noun)].sum(-1)  # (levels, P)
        whole, cover = levels.mean(0), covers[own]
        inside = cover >= min(0.5, cover.max().item())  # the cells that the object covers by half
        within = [((whole * part).sum() / part.sum()).item() for part in (cover, covers[1 - own])]
        strong, hits = whole > 0.3 * whole.max(), inside[levels.argmax(1)].tolist()
        mask = blend_mask(sd, finest, words, thing.noun)
        rows.append({
            "ratio": within[0] / within[1], "iou": ((strong & inside).sum() / (strong | inside).sum()).item(), "words": share.item(),
            "hits": [float(hits[TIMESTEPS.index(level)]) for level in LEVELS], "chance": inside.float().mean().item(),
            "blend": mask.mean().item(), "covered": ((cover * mask).sum() / cover.sum()).item(),
            "vae": psnr(picture, sd.decode_latents(sd.encode_image(picture))[0]),
        })  # fmt: skip
    return rows


def cross_maps(sd: StableDiffusion, picture: Image.Image, words: str, seed: int) -> dict[Site, Tensor]:
    """Each layer's cross-attention maps (levels, P, T), averaged over heads, of the picture with noise of each of TIMESTEPS."""
    z, t = sd.encode_image(picture), torch.tensor(TIMESTEPS)
    a = sd.schedule.alphas_cumprod[t][:, None, None, None].to(z)
    noise = torch.randn((len(t), *z.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(z)
    kept: dict[Site, Tensor] = {}

    def keep(attn: Tensor, site: Site) -> Tensor:
        if site.kind == "cross":
            kept[site] = attn.mean(1).cpu()
        return attn

    noisy = a.sqrt() * z + (1 - a).sqrt() * noise
    sd.unet(noisy.to(sd.dtype), t.to(z.device), sd.encode_text(words).expand(len(t), -1, -1), keep)
    return kept


def blend_mask(sd: StableDiffusion, finest: dict[Site, Tensor], words: str, noun: str) -> Tensor:
    """(256,) of 0 and 1: the mask of a local blend of this noun after all TIMESTEPS, if the edit changed no map."""
    blend = LocalBlend(sd.tokenizer, [words, words], noun)
    for i in range(len(TIMESTEPS)):
        blend.maps = {site: layer[i].expand(2, -1, -1) for site, layer in finest.items()}
        mask = blend.update_mask((16, 16))
    return mask.flatten()


# ---------------------------------------------------------------- edits


def swap(bench: Bench, number: int) -> dict:
    """One noun of two is swapped for a third: without control, with the n-th map, with word maps, with self-attention, blended."""
    rng = Random(f"pair {number}")
    old, other, new = rng.sample(list(NOUNS), 3)
    said = (
        f"a {{}} next to a {other} {rng.choice(list(PLACES))}"
        if number % 2
        else f"a {other} next to a {{}} {rng.choice(list(PLACES))}"
    )
    prompts, tokenizer = [said.format(old), said.format(new)], bench.sd.tokenizer
    edit = Swap(tokenizer, prompts)
    methods = {
        "no control": None,
        "n-th map": only_nth(edit, tokenizer.positions(prompts[1], new)),
        "word maps": Swap(tokenizer, prompts, self_replace_steps=0.0),
        "Prompt-to-Prompt": edit,
        "with local blend": Swap(tokenizer, prompts, blend=LocalBlend(tokenizer, prompts, [[old], [new]])),
    }
    images = bench.generate([prompts[0]] + [prompts[1]] * len(methods), [number], EDIT_GUIDANCE, Beside(list(methods.values())))
    source, *seen = bench.judge.look(images)
    rows = {}
    for name, after, image in zip(methods, seen, images[1:]):
        edited, kept = (source.find(old), after.find(new)), (source.find(other), after.find(other))
        rows[name] = {
            "swapped": after.find(new) is not None and after.find(old) is None,
            "kept": overlap(*kept) > 0.5, "place": overlap(*edited) > 0.5, "layout": layout(images[0], image),
            "colour": None if None in kept else kept[0].colour == kept[1].colour,
            "background": psnr(images[0], image, outside([found.box for found in edited], image.size)) if all(edited) else None,
        }  # fmt: skip
    return {"valid": sorted(thing.noun for thing in source.things) == sorted((old, other)), "rows": rows}


def reweight(bench: Bench, number: int) -> dict:
    """One word of a prompt with each of WEIGHTS, window 1, self-attention free: how much of it do the pictures show?"""
    word, rng = list(GRADED)[number % len(GRADED)], Random(f"weights {number}")
    noun = rng.choice([noun for noun in NOUNS if (word, noun) != ("flowers", "flower")])
    place = rng.choice(
        [place for place in PLACES if (word, place) not in (("snowy", "in the snow"), ("flowers", "on the water"))]
    )
    words = f"a {'red ' if word == 'red' else ''}{noun} {place}{GRADED[word]}"
    others = [weight for weight in WEIGHTS if weight != 1]
    edits = [Reweight(bench.sd.tokenizer, [words, words], {word: weight}, None, 1.0, 0.0) for weight in others]
    images = bench.generate([words] * (1 + len(edits)), [2000 + number], GUIDANCE, Beside(edits))
    found, where = bench.judge.look(images[:1])[0].find(noun), np.zeros((64, 64), bool)
    x0, y0, x1, y1 = (max(0, int(side)) for side in found.box) if found else (0, 0, 63, 63)
    where[y0 : y1 + 1, x0 : x1 + 1] = True
    values = dict(zip([1.0, *others], (quantity(word, image, where) for image in images)))
    return {"word": word, "valid": found is not None, "values": [values[weight] for weight in WEIGHTS]}


def inversion(bench: Bench, number: int) -> dict:
    """A drawn pair is inverted and one noun swapped: PSNR of the source, and of the edit outside the edited object, by method."""
    [(seed, scene)] = scenes(UNSEEN + 700_000 + 100 * number, 2, 1)
    picture = world.example(seed)[0]
    old, other = (thing.noun for thing in scene.things)
    words = f"a {old} next to a {other} {scene.place}"
    new = Random(f"invert {number}").choice([noun for noun in NOUNS if noun not in (old, other)])
    prompts, before = [words, words.replace(old, new, 1)], bench.judge.look([picture])[0]
    rows = {}
    for method in ("ddim", "null-text"):
        inverted = invert(bench.sd, picture, words, method, bench.steps, GUIDANCE, inner_steps=10, lr=0.01, progress=False)
        images = bench.sd.generate(prompts, inversion=inverted, edit=Swap(bench.sd.tokenizer, prompts), progress=False).images
        after = bench.judge.look(images)[1]
        edited = (before.find(old), after.find(new))
        rows[method] = {
            "source": psnr(picture, images[0]),
            "background": psnr(picture, images[1], outside([found.box for found in edited], picture.size))
            if all(edited)
            else None,
        }
    return {"valid": before.find(old) is not None, "rows": rows}
