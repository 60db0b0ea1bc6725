"""Trials of the toy itself: does it draw what the prompt says, and do its maps point at it? And of the judge."""

import torch
from torch import Tensor

from minip2p import StableDiffusion
from weights.scorecard.bench import GUIDANCE, LESS_GUIDANCE, UNSEEN, Bench
from weights.scorecard.measures import points, psnr_outside
from weights.toyworld import world
from weights.toyworld.judge import compare, test

BATCH = 10  # pictures of one trial of `obeyed`


# ---------------------------------------------------------------- is the prompt obeyed?


def scenes(first: int, things: int, count: int) -> list[tuple[int, world.Scene]]:
    """The next scenes with so many things, with their seeds."""
    found, seed = [], first
    while len(found) < count:
        scene = world.sample(seed)
        if len(scene.things) == things:
            found.append((seed, scene))
        seed += 1
    return found


def obeyed(bench: Bench, number: int, guidance: float = GUIDANCE) -> list[dict]:
    """Captions of unseen scenes, those with one and two things by turns: what does the judge find of what they say?"""
    things = 1 + number % 2
    chosen = scenes(UNSEEN + 1000 * number, things, BATCH)
    prompts = [world.caption(scene, seed) for seed, scene in chosen]
    verdicts = bench.judge.look(bench.generate(prompts, [seed for seed, _ in chosen], guidance=guidance))
    return [
        {"prompt": prompt, "seed": seed, "things": things, "relation": scene.relation, "nouns": [t.noun for t in scene.things],
         "seen": [thing.noun for thing in seen.things], "right": compare(seen, scene, prompt)}
        for (seed, scene), prompt, seen in zip(chosen, prompts, verdicts)
    ]  # fmt: skip


def obeyed_with_less(bench: Bench, number: int) -> list[dict]:
    """The same pictures with less guidance."""
    return obeyed(bench, number, LESS_GUIDANCE)


# ---------------------------------------------------------------- do maps point at their things?


def word_maps(sd: StableDiffusion, noisy: Tensor, t: Tensor, prompt: str) -> dict[int, list[Tensor]]:
    """For each map size, the layers' cross-attention maps (levels, side, side, T), averaged over heads."""
    maps: dict[int, list[Tensor]] = {}

    def record(layer: Tensor, site) -> Tensor:
        if site.kind == "cross":
            maps.setdefault(site.height, []).append(layer.mean(1).unflatten(1, (site.height, site.width)).cpu())
        return layer

    sd.unet(noisy, t, sd.encode_text(prompt).expand(len(t), -1, -1), edit=record)
    return maps


@torch.no_grad()
def pointing(bench: Bench, number: int) -> list[dict]:
    """Noise on drawn pictures: is the strongest cell of the noun's map a cell of the thing, whose mask is known?

    Ten noise levels, each seen once, with the caption; and the mean map over them. A cell is the thing's if the thing
    covers at least half of it. chance: the share of such cells. Also the VAE's error on these pictures.
    """
    sd, rows = bench.sd, []
    for seed in range(UNSEEN + 500_000 + 10 * number, UNSEEN + 500_000 + 10 * (number + 1)):
        picture, words, scene, truth = world.example(seed)
        z = sd.encode_image(picture)
        row = {"psnr": psnr_outside(picture, sd.decode_latents(z)[0], []), "points": []}
        rows.append(row)
        nouns = [thing.noun for thing in scene.things]
        if len(set(nouns)) < len(nouns):
            continue  # both things' words stand in one map
        t = torch.tensor(sd.schedule.timesteps(10))
        a = sd.schedule.alphas_cumprod[t][:, None, None, None].to(z)
        noise = torch.randn((len(t), *z.shape[1:]), generator=torch.Generator().manual_seed(seed)).to(z)
        noisy = (a.sqrt() * z + (1 - a).sqrt() * noise).to(sd.dtype)
        maps = word_maps(sd, noisy, t.to(z.device), words)
        for noun, mask in zip(nouns, truth.masks):
            positions = sd.tokenizer.positions(words, noun)
            row["points"].append({"noun": noun} | {str(side): points(sum(m[..., positions].sum(-1) for m in layers), mask)
                                                   for side, layers in maps.items()})  # fmt: skip
    return rows


# ---------------------------------------------------------------- the judge itself


def judged_by_truth(bench: Bench, number: int) -> dict:
    """The judge on unseen drawn pictures, as they are and through the VAE."""
    return test(bench.judge, bench.sd, 50 * number, 50)
