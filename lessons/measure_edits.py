"""Surveys over seeds for lessons 4 (add), 5 (re-weight) and 6 (local blend).

A survey runs one kind of edit on every seed of the settings and returns pictures or numbers; the lesson prints them. Quantities
of graded words are read from pixels. What needs the toy's detector takes `detect`, which is None for another model.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image, ImageChops
from torch import Tensor

from lessons.common import Settings, percent
from lessons.measure import mean
from minip2p import Add, Edit, LocalBlend, Recording, Result, Reweight, StableDiffusion, Swap
from weights.scorecard.measures import layout, outside, pixels, psnr, quantity
from weights.toyworld.judge import Verdict

Pictures = list[list[Image.Image]]  # [seed][prompt], the source first


def record_seeds(sd: StableDiffusion, prompt: str, seeds: Sequence[int], chosen: Settings, guidance: float) -> list[Recording]:
    """The source's run of every seed: an edit of it then runs its targets alone."""
    return [sd.record(prompt, seed=seed, steps=chosen.steps, guidance=guidance, progress=False) for seed in seeds]


def edit_seeds(sd: StableDiffusion, recordings: Sequence[Recording], prompts: Sequence[str], edit) -> list[Result]:
    """One result per recording, of all prompts, the source first. edit None: no control."""
    return [sd.generate(list(prompts), edit=edit, recording=recording, progress=False) for recording in recordings]


# ---------------------------------------------------------------- lesson 4


def shows(seen: Verdict, phrase: str) -> bool:
    """True if the detector sees in a picture what an added phrase says, such as "at night" or "a red castle"."""
    if phrase == "at night":
        return seen.night
    if phrase in seen.weather or seen.style == f"{phrase} of" or seen.place == phrase:
        return True
    *_, noun = phrase.split()
    thing = seen.find(noun)
    return thing is not None and phrase in (f"a {noun}", f"a {thing.colour} {noun}")


def add_survey(sd, detect, recordings, phrases: dict[str, str], windows: dict) -> tuple[dict[str, Pictures], dict[str, list]]:
    """Adds each phrase alone, with each pair of windows (cross, self; None: no control).

    phrases: phrase -> target prompt. Returns the pictures [seed][target] of each control, and a row for each phrase:
    the share of seeds in which the detector sees the phrase, for each control, then the mean layout, for each control.
    """
    prompts = [recordings[0].prompt, *phrases.values()]
    pictures = {}
    for name, pair in windows.items():
        edit = None if pair is None else Add(sd.tokenizer, prompts, *pair)
        pictures[name] = [result.images for result in edit_seeds(sd, recordings, prompts, edit)]
    rows = {}
    for number, phrase in enumerate(phrases, 1):
        found = [detect and percent([shows(detect(row[number]), phrase) for row in own]) for own in pictures.values()]
        rows[phrase] = found + [mean([layout(row[0], row[number]) for row in own]) for own in pictures.values()]
    return pictures, rows


def object_survey(sd, detect, recordings, fewer: str, noun: str, chosen: Settings, guidance: float) -> tuple[Pictures, dict]:
    """Drops an object from the recorded prompt, and adds it to `fewer`, the prompt without it.

    Returns [seed][with the object, without it, dropped, added], the first two without control, and rows: how often the
    detector sees the object, and the layout's similarity to the source of the edit.
    """
    more = recordings[0].prompt
    dropped = edit_seeds(sd, recordings, [more, fewer], Add(sd.tokenizer, [more, fewer]))
    alone = record_seeds(sd, fewer, chosen.seeds, chosen, guidance)
    added = edit_seeds(sd, alone, [fewer, more], Add(sd.tokenizer, [fewer, more]))
    lines = [[less.images[0], grown.images[0], less.images[1], grown.images[1]] for less, grown in zip(dropped, added)]
    with_it, without_it, less, grown = zip(*lines)
    pairs = {
        f"{noun} dropped, no control": (with_it, without_it),
        f"{noun} dropped, Prompt-to-Prompt": (with_it, less),
        f"{noun} added, no control": (without_it, with_it),
        f"{noun} added, Prompt-to-Prompt": (without_it, grown),
    }
    rows = {}
    for name, (before, after) in pairs.items():
        found = detect and percent([detect(picture).find(noun) is not None for picture in after])
        rows[name] = [found, mean([layout(*pair) for pair in zip(before, after)])]
    return lines, rows


# ---------------------------------------------------------------- lesson 5


def slider(sd: StableDiffusion, prompt: str, word: str, weights: Sequence[float]) -> Edit:
    """A Reweight with the prompt as its own source, and as a target once for each weight."""
    edit = Reweight(sd.tokenizer, [prompt] * (1 + len(weights)), {word: 1.0})
    equalizer = edit.equalizer.clone()
    equalizer[:, sd.tokenizer.positions(prompt, word)] = torch.tensor(weights)[:, None]
    return replace(edit, equalizer=equalizer)


def place_of(result: Result, noun: str, prompt: int = 0) -> Tensor:
    """(height, width) bool: the pixels where a noun's mean map exceeds half of its maximum."""
    share = result.maps.word(noun, prompt, mean=True)[None, None]
    height, width = result.images[0].height, result.images[0].width
    share = torch.nn.functional.interpolate(share, (height, width), mode="nearest")[0, 0]
    return (share > 0.5 * share.max()).cpu()


def weight_survey(sd, detect, chosen: Settings, prompts: dict[str, str], nouns, weights: Sequence[float], guidance: float):
    """Re-weights each graded word alone, on every seed.

    prompts: graded word -> prompt that has it; all show the nouns. Weight 1 is the source itself. Returns the pictures
    {word: [seed][weight]}; {word: [mean quantity at each weight]}, quantities of weights/scorecard/measures.py, that of "red"
    where the first noun is; and over all words [layout, compared with weight 1] and [confidence] at each weight: the detector's
    score of the nouns, 0 for one that it does not find.
    """
    others = [weight for weight in weights if weight != 1]
    pictures: dict[str, Pictures] = {}
    amounts, layouts, scores = {}, [], []
    for word, prompt in prompts.items():
        edit, table = slider(sd, prompt, word, others), []
        pictures[word] = []
        for seed in chosen.seeds:
            run = {"seed": seed, "steps": chosen.steps, "guidance": guidance, "progress": False}
            result = sd.generate(list(edit.prompts), edit=edit, record=word == "red", **run)
            images = dict(zip([1.0, *others], result.images))
            place = place_of(result, nouns[0]).numpy() if word == "red" else None
            pictures[word].append([images[weight] for weight in weights])
            table.append([quantity(word, images[weight], place) for weight in weights])
            layouts.append([layout(images[1.0], images[weight]) for weight in weights])
            scores.append([confidence(detect, images[weight], nouns) for weight in weights])
        amounts[word] = [mean(column) for column in zip(*table)]
    return pictures, amounts, *([mean(column) for column in zip(*rows)] for rows in (layouts, scores))


def confidence(detect, picture: Image.Image, nouns: Sequence[str]) -> float | None:
    """The mean of the detector's scores of the nouns in a picture, 0 for one that it does not find."""
    if detect is None:
        return None
    found = [detect(picture).find(noun) for noun in nouns]
    return sum(thing.score for thing in found if thing) / len(found)


# ---------------------------------------------------------------- lesson 6

Box = tuple[float, float, float, float]  # (x0, y0, x1, y1) in pixels


def mask_picture(result: Result, step: int = -1) -> Image.Image:
    """The local blend's mask of the first target as a picture of the result's size; white: the picture may change."""
    mask = Image.fromarray((255 * result.masks[step, 0, 0]).byte().cpu().numpy())
    return mask.resize(result.images[0].size, Image.Resampling.NEAREST)


def difference_picture(a: Image.Image, b: Image.Image, times: int = 4) -> Image.Image:
    """The absolute difference of two pictures, so many times as bright; black: no difference."""
    return ImageChops.difference(a, b).point(lambda value: min(255, times * value))


def box_of(result: Result, noun: str, detect) -> Box:
    """A noun's box in the source: the detector's. Without a detector, or if it finds none: around the noun's strong map."""
    seen = detect and detect(result.images[0]).find(noun)
    if seen:
        return tuple(seen.box)
    rows, columns = place_of(result, noun).nonzero().T
    return tuple(map(float, (columns.min(), rows.min(), columns.max(), rows.max())))


def box_mask(size: tuple[int, int], box: Box) -> Image.Image:
    """A white box on black, with a margin of a twentieth of the picture, as a person would draw it."""
    margin = size[0] / 20
    return Image.fromarray((~outside([(box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin)], size)).numpy())


def local_measures(results: Sequence[Result], boxes: Sequence[Box], detect, noun: str, colour: str) -> list:
    """[mean share of the mask, PSNR outside the box, layout inside the box, how often the noun has the colour], over seeds."""
    rows = []
    for result, box in zip(results, boxes):
        source, edited = result.images[:2]
        where = ~pixels(box_mask(source.size, box))[..., 0].bool()
        crops = [picture.crop(tuple(map(round, box))) for picture in (source, edited)]
        seen = detect and detect(edited).find(noun)
        mask = None if result.masks is None else float(result.masks[-1].mean())
        rows.append([mask, psnr(source, edited, where), layout(*crops), bool(seen and seen.colour == colour)])
    masks, noise, inside, found = zip(*rows)
    return [None if None in masks else percent(masks), mean(noise), mean(inside), detect and percent(found)]


def local_survey(sd, detect, recordings: Sequence[Recording], prompts, noun: str, colour: str, chosen: Settings, guidance: float):
    """A swap on every seed: without control, everywhere, with a local blend of `noun`, and inside a drawn box around the noun.

    "inpainting the box" is the box without the source's maps, from the noise of another seed. Returns {attempt: [result of each
    seed]} and a row of `local_measures` for each attempt.
    """
    results: dict[str, list[Result]] = {}
    boxes = []

    def swap(windows=(0.8, 0.4), **blend) -> Edit:
        return Swap(sd.tokenizer, prompts, *windows, blend=LocalBlend(sd.tokenizer, prompts, **blend) if blend else None)

    for seed, recording in zip(chosen.seeds, recordings):
        run = {"recording": recording, "progress": False}
        free = sd.generate(prompts, record=True, **run)
        boxes.append(box_of(free, noun, detect))
        drawn = {"mask": box_mask(free.images[0].size, boxes[-1]), "start": 0.0}
        noise = torch.cat([sd.init_latents(seed), sd.init_latents(seed + len(chosen.seeds))])
        fresh = {"latents": noise, "steps": chosen.steps, "guidance": guidance, "progress": False}
        attempts = {
            "no control": free,
            "swap": sd.generate(prompts, edit=swap(), **run),
            "swap, blend at 0.3": sd.generate(prompts, edit=swap(words=noun), **run),
            "swap, blend at 0.5": sd.generate(prompts, edit=swap(words=noun, threshold=0.5), **run),
            "swap in the box": sd.generate(prompts, edit=swap(**drawn), **run),
            "inpainting the box": sd.generate(prompts, edit=swap((0.0, 0.0), **drawn), **fresh),
        }
        for name, result in attempts.items():
            results.setdefault(name, []).append(result)
    return results, {name: local_measures(own, boxes, detect, noun, colour) for name, own in results.items()}
