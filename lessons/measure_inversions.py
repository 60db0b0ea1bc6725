"""Surveys of inverted pictures for lessons 7 to 9: edits of drawings that the model has not seen, over seeds."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lessons.common import percent
from lessons.measure import mean, swapped
from lessons.pictures import UNSEEN, USUAL, picture
from minip2p import Inversion, StableDiffusion, Swap, invert
from minip2p.edits import Edit
from minip2p.images import open_image
from minip2p.inversion import GRADIENT_SCALE
from minip2p.scheduler import ddim_step
from weights.scorecard.measures import outside, psnr
from weights.toyworld import world

OTHER = {"cat": "dog", "car": "bicycle", "house": "castle", "tree": "flower", "boat": "ball"}  # which noun is swapped for which
OTHER |= {new: old for old, new in OTHER.items()}
MARGIN = 6  # pixels around an object that an edit may change: the new object can be larger


@dataclass(frozen=True)
class Task:
    """A drawing and a swap of its first object."""

    picture: Image.Image
    prompts: list[str]  # what it shows, and what it should show
    old: str
    new: str
    background: Tensor  # (height, width) bool: the pixels that the edit should not change


@dataclass(frozen=True)
class Outcome:
    """One edit of one picture."""

    source: Image.Image
    target: Image.Image
    source_psnr: float  # dB, the source beside the edit against the picture
    background_psnr: float  # dB, the edited picture against the picture, outside the object
    success: bool | None  # the detector finds the new object and not the old one; None without a detector
    inversion: Inversion | None = None  # that was edited; its nfe is the number of network evaluations
    seconds: float = 0.0  # of the inversion


def tasks(sd: StableDiffusion, count: int, seed: int = 0) -> list[Task]:
    """The first `count` drawings from UNSEEN + 1000 * seed on whose first object can be swapped; none is picked."""
    found: list[Task] = []
    number = UNSEEN + 1000 * seed
    while len(found) < count:
        drawn, caption, scene, truth = world.example(number)
        number += 1
        old = scene.things[0].noun
        new = OTHER[old]
        on = scene.relation == "on"  # only some objects stand on others
        if caption.split().count(old) == 1 and new not in caption and not (on and new not in world.CLIMBERS):
            size = sd.check_size(None)
            x0, y0, x1, y1 = truth.boxes[0]
            keep = outside([(x0 - MARGIN, y0 - MARGIN, x1 + MARGIN, y1 + MARGIN)], drawn.size)
            keep = F.interpolate(keep[None, None].float(), size)[0, 0] > 0
            found.append(Task(open_image(drawn, size), [caption, caption.replace(old, new)], old, new, keep))
    return found


def edited(sd: StableDiffusion, detect: Callable | None, task: Task, inversion: Inversion, seconds: float = 0.0) -> Outcome:
    """The task's swap on its inverted picture, measured."""
    swap = Swap(sd.tokenizer, task.prompts)
    source, target = sd.generate(task.prompts, inversion=inversion, edit=swap, progress=False).images
    return measured(detect, task, source, target, inversion, seconds)


def measured(detect: Callable | None, task: Task, source: Image.Image, target: Image.Image, *cost) -> Outcome:
    """An outcome from its pictures. cost: the inversion and its seconds."""
    success = swapped(detect(target), task.old, task.new) if detect else None
    return Outcome(source, target, psnr(source, task.picture), psnr(target, task.picture, task.background), success, *cost)


def summary(outcomes: Sequence[Outcome]) -> list:
    """[PSNR of the source, PSNR of the edit's background, edit success], means of several outcomes."""
    success = None if outcomes[0].success is None else percent([made.success for made in outcomes])
    return [mean([made.source_psnr for made in outcomes]), mean([made.background_psnr for made in outcomes]), success]


def edits_after_ddim(
    sd: StableDiffusion, detect: Callable | None, tasks: Sequence[Task], steps: int, guidances: Sequence[float]
) -> tuple[dict[str, list], list[list[Image.Image]]]:
    """The tasks' edits straight after DDIM inversion: {guidance: summary}, and for each task [drawing, source, edit, ...]."""
    outcomes = []
    for task in tasks:
        ddim = invert(sd, task.picture, task.prompts[0], "ddim", steps, progress=False)
        outcomes.append([edited(sd, detect, task, replace(ddim, guidance=w)) for w in guidances])
    sheet = [[task.picture, *(part for made in row for part in (made.source, made.target))] for task, row in zip(tasks, outcomes)]
    return {f"guidance {w}": summary(column) for w, column in zip(guidances, zip(*outcomes))}, sheet


def unusual(
    sd: StableDiffusion, steps: int, guidances: Sequence[float]
) -> tuple[dict[str, list[float]], list[list[Image.Image]]]:
    """The usual pictures of pictures.py and their unusual twins, inverted by DDIM and sampled at each guidance.

    Returns the rows of a table {name: [PSNR of the VAE, PSNR of each guidance against the VAE's picture]}, the last two with
    the means, and the rows of a figure: usual picture and its results, unusual picture and its results.
    """
    rows, sheet, means = {}, [], {"usual": [], "unusual": []}
    for name in USUAL:
        sheet.append([])
        for kind, key in (("usual", name), ("unusual", f"{name}_odd")):
            given, caption = picture(key, sd.check_size(None))
            ddim = invert(sd, given, caption, "ddim", steps, progress=False)
            vae = sd.decode_latents(ddim.latents[:1])[0]
            made = [sd.generate(caption, inversion=replace(ddim, guidance=w), progress=False).images[0] for w in guidances]
            rows[f"{caption}, {kind}"] = [psnr(vae, given), *(psnr(result, vae) for result in made)]
            means[kind].append(rows[f"{caption}, {kind}"])
            sheet[-1] += [given, *made]
    return rows | {f"mean, {kind}": [mean(column) for column in zip(*of_kind)] for kind, of_kind in means.items()}, sheet


def one_embedding(sd: StableDiffusion, inversion: Inversion, nfe: int, lr: float, batch: int = 5) -> Tensor:
    """(1, T, D): ONE unconditional embedding for all steps of the inversion's pivot, from at most `nfe` network evaluations.

    Each update takes `batch` random steps of the pivot; Adam's learning rate falls to zero, because one embedding must suit all.
    """
    steps, pivot, guidance = inversion.steps, inversion.latents.flip(0).to(sd.device), inversion.guidance
    levels = sd.schedule.levels(steps)
    times, starts, ends = (torch.tensor(column, device=sd.device) for column in zip(*levels))
    cond, null = sd.encode_text(inversion.prompt), sd.encode_text("").float()
    with torch.no_grad():
        on_pivot = zip(pivot.split(1), levels)  # without the clean latents, from which no step starts
        eps_cond = torch.cat([sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond), z, a) for z, (t, a, _) in on_pivot])
    null.requires_grad_()
    adam, random, updates = torch.optim.Adam([null]), torch.Generator().manual_seed(0), (nfe - steps) // batch
    for update in range(updates):
        adam.param_groups[0]["lr"] = lr * (1 - update / updates)
        i = torch.randint(steps, (batch,), generator=random).to(sd.device)
        z, a, a_next = pivot[i], starts[i, None, None, None], ends[i, None, None, None]
        eps_uncond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), times[i], null.to(sd.dtype).expand(batch, -1, -1)), z, a)
        z_next = ddim_step(z, eps_uncond + guidance * (eps_cond[i] - eps_uncond), a, a_next)
        loss = F.mse_loss(z_next, pivot[i + 1]) * GRADIENT_SCALE
        null.grad = torch.autograd.grad(loss, null)[0] / GRADIENT_SCALE
        adam.step()
    return null.detach()


@torch.no_grad()
def sample_with(sd: StableDiffusion, z: Tensor, cond: Tensor, uncond: Tensor, guidance: float, edit: Edit) -> Tensor:
    """Guided sampling from z (1, 4, h, w), each step with its own embeddings: cond (steps, B, T, D), uncond (steps, 1, T, D)."""
    edit, z = edit.prepare(sd.device), z.expand(cond.shape[1], -1, -1, -1)
    for i, (t, a, a_next) in enumerate(sd.schedule.levels(len(cond))):
        of_step, z_in = edit.at(i, len(cond)), torch.cat([z, z])
        text = torch.cat([uncond[i].expand_as(cond[i]), cond[i]]).to(sd.dtype)
        eps_uncond, eps_cond = sd.schedule.to_eps(sd.unet(z_in.to(sd.dtype), t, text, of_step, n_uncond=len(z)), z_in, a).chunk(2)
        z = of_step.after_step(ddim_step(z, eps_uncond + guidance * (eps_cond - eps_uncond), a, a_next))
    return z


def tuned_prompt(
    sd: StableDiffusion, detect: Callable | None, tasks: Sequence[Task], optimise: Callable, guidance: float, options: dict
) -> dict[str, list[Outcome]]:
    """The tasks' edits with different embeddings tuned to the picture: {what is tuned: outcomes}.

    optimise (pivot, side, tuned, fixed) -> (steps, 1, T, D): lesson 8's function. options: of `minip2p.invert`.
    """
    names = ("nothing", "empty prompt", "prompt", "prompt, carried over")
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for task in tasks:
        fitted = invert(sd, task.picture, task.prompts[0], "null-text", guidance=guidance, **options)
        plain = replace(fitted, method="ddim", uncond=None)
        source, target = (sd.encode_text(prompt).float() for prompt in task.prompts)
        empty = sd.encode_text("").float()
        pivot = fitted.latents.flip(0)
        tuned = optimise(pivot, "cond", source, empty)
        swap, steps = Swap(sd.tokenizer, task.prompts), fitted.steps
        for name, inversion in zip(outcomes, (plain, fitted)):
            outcomes[name].append(edited(sd, detect, task, inversion))
        targets = target.expand(steps, -1, -1)[:, None], tuned + (target - source)
        for name, of_target in zip(names[2:], targets):
            latents = sample_with(sd, pivot[:1], torch.cat([tuned, of_target], 1), empty.expand(steps, 1, -1, -1), guidance, swap)
            outcomes[name].append(measured(detect, task, *sd.decode_latents(latents)))
    return outcomes


def compare(
    sd: StableDiffusion, detect: Callable | None, tasks: Sequence[Task], methods: Sequence[str], **options
) -> Iterator[dict[str, Outcome]]:
    """For each task, every method's outcome. options: of `minip2p.invert`."""
    for task in tasks:
        outcomes = {}
        for method in methods:
            begin = now(sd)
            inversion = invert(sd, task.picture, task.prompts[0], method, progress=False, **options)
            outcomes[method] = edited(sd, detect, task, inversion, now(sd) - begin)
        yield outcomes


def now(sd: StableDiffusion) -> float:
    """Seconds, after a GPU has done all that it was asked."""
    if sd.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def limit(sd: StableDiffusion, tasks: Sequence[Task]) -> list[float]:
    """[PSNR of the picture, PSNR of the background], means over the tasks, of what the VAE alone returns."""
    returned = [sd.decode_latents(sd.encode_image(task.picture))[0] for task in tasks]
    pairs = [(psnr(vae, task.picture), psnr(vae, task.picture, task.background)) for vae, task in zip(returned, tasks)]
    return [mean(column) for column in zip(*pairs)]


@torch.no_grad()
def remaining(sd: StableDiffusion, nulltext: Inversion) -> float:
    """|eps(N_t) - eps(C)| / |eps(empty) - eps(C)|, mean over the steps, at the pivot's latents.

    1: null-text left the unconditional prediction as far from the source prompt's as the empty prompt's is. 0: it is the
    source prompt's, as with negative-prompt inversion.
    """
    cond, empty = sd.encode_text(nulltext.prompt), sd.encode_text("")
    shares = []
    for i, (t, _, _) in enumerate(sd.schedule.levels(nulltext.steps)):
        z = nulltext.latents[-1 - i].to(sd.device, sd.dtype).expand(3, -1, -1, -1)
        with_cond, with_empty, tuned = sd.unet(z, t, torch.cat([cond, empty, nulltext.null_text[[i]].to(cond)]))
        shares.append(float((tuned - with_cond).norm() / (with_empty - with_cond).norm()))
    return mean(shares)
