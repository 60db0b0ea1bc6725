"""Lesson 8: null-text inversion, then every edit

You will see a given picture return with guidance, because the embedding of the empty prompt is optimised for it. Then swap,
add, re-weight and local blend work on that picture. Read lesson 7 first. About two minutes on two CPU cores.

    make lesson8            # with other settings: make lesson8 STEPS=50 SEEDS=8
"""

# %%
from dataclasses import replace

import torch
import torch.nn.functional as F

import minip2p
from lessons.common import finish, load, settings, show, table
from lessons.measure import detector
from lessons.measure_inversions import one_embedding, summary, tasks, tuned_prompt
from lessons.pictures import picture
from minip2p.figures import curves, grid
from minip2p.inversion import GRADIENT_SCALE
from minip2p.scheduler import ddim_step
from weights.scorecard.measures import psnr

chosen = settings("lesson8")
sd, detect = load(chosen), detector(chosen)
STEPS, GUIDANCE = chosen.steps, 5.0  # 5 here and in lesson 9: edits succeed, and the source is easier to bring back than at 7.5
UPDATES, LR = 3, 0.1  # of Adam at each step, found by trial on the toy; the authors use 10 and 0.01 for 50 steps
OPTIONS = {"steps": STEPS, "inner_steps": UPDATES, "lr": LR, "progress": False}
image, PROMPT = picture("cat_and_house", sd.check_size(None))

# %% [markdown]
# ## The idea
# DDIM inversion at guidance 1 gives latents z*_T (noise), ..., z*_0 (the picture). This trajectory is called the pivot. Guided
# sampling leaves it (lesson 7). Null-text inversion keeps the model and the prompt C, and optimises the embedding N of the
# empty prompt. Each step t has its own N_t, so that the guided step from the current latents z_t ends on the pivot:
#
#     N_t = argmin over N  of  || z*_(t-1) - DDIM(z_t, eps) ||^2,    eps = eps(z_t, N) + w (eps(z_t, C) - eps(z_t, N))
#
# w is the guidance. The search starts at z*_T with the embedding of the empty prompt. A few updates of Adam approximate the minimum.
# Then z_t moves on with N_t, and the next step begins its search at N_t.

# %%
nulltext = minip2p.invert(sd, image, PROMPT, method="null-text", guidance=GUIDANCE, **OPTIONS)
ddim = replace(nulltext, method="ddim", uncond=None)
ways = {f"DDIM, guidance {w:g}": replace(ddim, guidance=w) for w in (1, GUIDANCE, 7.5)}
ways[f"null-text, guidance {GUIDANCE:g}"] = nulltext
vae = sd.decode_latents(nulltext.latents[:1])[0]
made = [vae, *(sd.generate(PROMPT, inversion=way, progress=False).images[0] for way in ways.values())]
labels, notes = ["the picture", "through the VAE alone", *ways], [["", *(f"{psnr(result, image):.1f} dB" for result in made)]]
show(grid([[image, *made]], (), labels, f"{PROMPT!r}, {STEPS} steps. PSNR against the picture", notes), chosen, "01_back")

# %% [markdown]
# ## By hand
# The function can optimise either side of guidance: "uncond", the empty prompt, which is null-text inversion, or "cond" (see
# below). Only the embedding gets gradients. With five sampling steps, this function gives the library's embeddings.

# %%
def predict(z, t, a, text):
    return sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, text.to(sd.dtype)), z, a)


def optimise(pivot, side, tuned, fixed):
    """pivot (steps + 1, 4, h, w), the noise first -> one embedding per step, (steps, 1, T, D), with which sampling follows it."""
    z, found, steps = pivot[:1], [], len(pivot) - 1
    for i, (t, a, a_next) in enumerate(sd.schedule.levels(steps)):
        with torch.no_grad():
            eps_fixed = predict(z, t, a, fixed)
        tuned, loss = tuned.detach().clone().requires_grad_(), torch.ones(())
        adam = torch.optim.Adam([tuned], LR * (1 - 0.5 * i / steps))
        for update in range(UPDATES + 1):
            eps_tuned = predict(z, t, a, tuned)
            eps_uncond, eps_cond = (eps_tuned, eps_fixed) if side == "uncond" else (eps_fixed, eps_tuned)
            z_next = ddim_step(z, eps_uncond + GUIDANCE * (eps_cond - eps_uncond), a, a_next)
            if update == UPDATES or loss < 1e-5 + 1e-3 * i / steps:  # near enough: the authors' threshold
                break
            loss = F.mse_loss(z_next, pivot[i + 1 : i + 2])
            tuned.grad = torch.autograd.grad(loss * GRADIENT_SCALE, tuned)[0] / GRADIENT_SCALE  # scaled for half precision
            adam.step()
        z = z_next.detach()
        found.append(tuned.detach())
    return torch.stack(found)


few = minip2p.invert(sd, image, PROMPT, method="null-text", guidance=GUIDANCE, **OPTIONS | {"steps": 5})
cond, empty = sd.encode_text(PROMPT), sd.encode_text("")
by_hand = optimise(few.latents.flip(0), "uncond", empty.float(), cond)
difference = (by_hand[:, 0] - few.null_text).abs().max() / few.null_text.abs().max()
print(f"by hand and by library: largest relative difference of the embeddings {difference:.1e}")

# %% [markdown]
# ## The loss
# The squared distance to the pivot after each step, from noise to picture. With the empty prompt as it is, the distance grows from step
# to step. With null-text it stays far smaller, because the updates lower it at almost every step (at step 9 they overshoot).

# %%
alone = sd.generate(PROMPT, inversion=ddim, progress=False).trajectory[1:, 0]
lines = {"empty prompt (DDIM)": (alone - nulltext.latents.flip(0)[1:]).square().mean((1, 2, 3)).tolist()}
lines |= {"null-text, before the updates": [losses[0] for losses in nulltext.losses]}
lines |= {"null-text, after the updates": [losses[-1] for losses in nulltext.losses]}
show(curves(range(1, STEPS + 1), lines, "step", "squared distance to the pivot", yscale="log"), chosen, "02_loss")

# %% [markdown]
# ## One embedding for all steps?
# A single embedding can be optimised for all steps of the pivot at once. With as many network evaluations as null-text it is worse. With
# twice as many it comes nearer. On this picture, one embedding per step is better and cheaper. ("numbers": values that are optimised.)

# %%
rows = {"one per step": [nulltext.null_text.numel(), nulltext.nfe, psnr(made[-1], vae)]}
for times in (1, 2):
    single = one_embedding(sd, nulltext, times * nulltext.nfe, LR)
    tuned = replace(nulltext, uncond=single.expand(STEPS, -1, -1))
    result = sd.generate(PROMPT, inversion=tuned, progress=False).images[0]
    rows[f"one for all steps, budget x {times}"] = [single.numel(), times * nulltext.nfe, psnr(result, vae)]
rows["the model's UNet, not tuned"] = [sum(weights.numel() for weights in sd.unet.parameters()), None, None]
table("reconstruction, PSNR in dB against the VAE's picture", ["numbers", "network evaluations", "PSNR"], rows)

# %% [markdown]
# ## Why not tune the prompt's own embedding?
# C can be optimised in the same way, and the source comes back as well. But an edit replaces C, and the target's prompt has no tuned
# embedding. In "prompt" it keeps less background than null-text, whose embedding serves the target too, and one of four succeeds. In
# "prompt, carried over" the target has the tuned C + (its own embedding - the source's). The tuned C draws the old object, and no edit
# succeeds. So the paper tunes the empty prompt: with it all four succeed, by the detector. It asks neither for place nor for colour: in the
# first row the tree stands where the car was. (The swaps are those of lesson 7.)

# %%
drawn = tasks(sd, len(chosen.seeds), chosen.seed)
outcomes = tuned_prompt(sd, detect, drawn, optimise, GUIDANCE, OPTIONS)
rows, columns = {name: summary(of_way) for name, of_way in outcomes.items()}, ["source", "edit's background", "success"]
table(f"{len(drawn)} drawings, one object swapped: PSNR against the drawing, in dB", columns, rows)
sheet = [[task.picture, *(row[i].target for row in outcomes.values())] for i, task in enumerate(drawn[:4])]
show(grid(sheet, (), ["drawing", *outcomes], f"The edits, by what is tuned; {STEPS} steps"), chosen, "03_tuned")

# %% [markdown]
# ## Every edit, on the picture
# Only the unconditional side has changed, so the edits of lessons 3 to 6 work as they are. After DDIM inversion alone (second row) the
# cat's and the house's colours have changed before any edit. What the words do not say may change: the dog is redder than the cat was.

# %%
words, dog = sd.tokenizer, [PROMPT, PROMPT.replace("cat", "dog")]
edits = {
    "swap: dog": minip2p.Swap(words, dog),
    "swap and blend": minip2p.Swap(words, dog, blend=minip2p.LocalBlend(words, dog, ["cat", "dog"])),
    "add: a blue house": minip2p.Add(words, [PROMPT, PROMPT.replace("a house", "a blue house")]),
    "add: at night": minip2p.Add(words, [PROMPT, f"{PROMPT} at night"]),
    "re-weight: cloudy × -1": minip2p.Reweight(words, [PROMPT, PROMPT], {"cloudy": -1.0}),
}
sheet = []
for way in (nulltext, ddim):
    results = [sd.generate(list(edit.prompts), inversion=way, edit=edit, progress=False).images for edit in edits.values()]
    sheet.append([results[0][0], *(target for _, target in results)])
names = ["null-text", "DDIM alone"]
notes = [[f"{psnr(row[0], image):.1f} dB", *[""] * len(edits)] for row in sheet]
show(grid(sheet, names, ["source", *edits], f"{PROMPT!r}, {STEPS} steps, guidance {GUIDANCE:g}", notes), chosen, "04_edits")

# %% [markdown]
# `sd.record` keeps the source's maps and latents. Later edits of the picture then run their targets alone: half the rows.

# %%
recording = sd.record(PROMPT, inversion=nulltext, progress=False)
replayed = sd.generate(dog, recording=recording, edit=edits["swap: dog"], progress=False).images[1]
print(f"the swap from the recording against the one above: {psnr(replayed, sheet[0][1]):.0f} dB")

# %% [markdown]
# ## Exercises
# 1. Set UPDATES to 1 and 10, then LR to 0.01. Compare the PSNR in the first figure. What does a smaller LR need?
# 2. Invert picture("house_odd"), the house upside down, and swap its house for a castle. Which way up is the castle?

# %%
finish()
