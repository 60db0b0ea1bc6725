"""Lesson 7: DDIM inversion

You will see a given picture turned into noise and back again. Without guidance it returns, with small errors. With guidance it
does not return, and you will measure why. Lesson 8 repairs this. About 90 seconds on two CPU cores.

    make lesson7            # with other settings: make lesson7 STEPS=50 SEEDS=8
"""

# %%
import torch

import minip2p
from lessons.common import finish, load, settings, show, table
from lessons.measure import detector
from lessons.measure_inversions import edits_after_ddim, tasks, unusual
from lessons.pictures import picture
from minip2p.figures import curves, grid
from minip2p.scheduler import ddim_step
from weights.scorecard.measures import psnr

chosen = settings("lesson7")
sd, detect = load(chosen), detector(chosen)
STEPS, GUIDANCE = chosen.steps, 7.5
image, PROMPT = picture("cat_and_house", sd.check_size(None))
uncond = sd.encode_text("")

# %% [markdown]
# ## There and back
# A DDIM step moves the latents z along the predicted noise eps, from one noise level to another (lesson 1):
#
#     z_to = sqrt(a_to) * (z - sqrt(1 - a_from) * eps) / sqrt(a_from) + sqrt(1 - a_to) * eps
#
# The step draws no random number, so it can go the other way: with a_to below a_from the same formula adds noise. This is DDIM
# inversion. It leads from the latents of a given picture to noise from which the model should generate this picture. One value
# is unknown: eps at the noisier latents, which are the result of the step. So inversion uses eps at the present latents, with the
# timestep of the noisier ones. This is its only error.

# %%
def predict(z, t, a, cond, guidance):
    """eps with classifier-free guidance; at guidance 1 the unconditional part cancels."""
    eps_cond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond), z, a)
    if guidance == 1:
        return eps_cond
    eps_uncond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, uncond.expand_as(cond)), z, a)
    return eps_uncond + guidance * (eps_cond - eps_uncond)


@torch.no_grad()
def to_noise(z, cond, steps, guidance=1):
    """Clean latents (B, 4, h, w) -> the latents of every step, the noise last, and the eps of every step."""
    pivot, noises = [z], []
    for t, a, a_next in reversed(sd.schedule.levels(steps)):  # named for sampling: here from a_next (cleaner) to a (noisier)
        noises.append(predict(pivot[-1], t, a, cond, guidance))
        pivot.append(ddim_step(pivot[-1], noises[-1], a_next, a))
    return pivot, noises


@torch.no_grad()
def from_noise(z, cond, steps, guidance):
    """Noise -> clean latents, as in lesson 1."""
    for t, a, a_next in sd.schedule.levels(steps):
        z = ddim_step(z, predict(z, t, a, cond, guidance), a, a_next)
    return z


z0, cond = sd.encode_image(image), sd.encode_text(PROMPT)
pivot, noises = to_noise(z0, cond, STEPS)
pictures = sd.decode_latents(torch.cat([z0, *(from_noise(pivot[-1], cond, STEPS, w) for w in (1, GUIDANCE))]))
labels = ["the picture", "through the VAE alone", "there and back, guidance 1", f"there and back, guidance {GUIDANCE}"]
notes, caption = [["", *(f"{psnr(made, image):.1f} dB" for made in pictures)]], f"{PROMPT!r}, {STEPS} steps. PSNR against the picture"
show(grid([[image, *pictures]], (), labels, caption, notes), chosen, "01_there_and_back")

# %% [markdown]
# PSNR measures how similar two pictures are, in dB (lesson 1). No inversion brings back what the VAE loses, so the VAE's PSNR is the
# limit. Guidance 1 comes close to it, guidance 7.5 does not. Two checks: the library has the same latents (its `guidance` is for later
# sampling; it inverts at guidance 1), and with the recorded eps of the inversion the way back is exact.

# %%
inversion = minip2p.invert(sd, image, PROMPT, method="ddim", steps=STEPS, guidance=GUIDANCE, progress=False)
difference = (torch.cat(pivot) - inversion.latents).abs().max() / inversion.latents.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")


def distance(a, b):
    """(B,): the distance of each picture's latents a from b, relative to the size of b."""
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


z = pivot[-1]
for (_, a, a_next), eps in zip(sd.schedule.levels(STEPS), reversed(noises)):
    z = ddim_step(z, eps, a, a_next)
print(f"back with the eps of the inversion: relative error of the latents {distance(z, z0).item():.1e}")

# %% [markdown]
# ## The number of steps
# With more steps, neighbouring latents are more alike, so the inversion's error should fall. At guidance 1 it does. At guidance 7.5
# the error grows with more steps, so the inversion's error cannot be its main cause. ("from t" is the noisiest timestep: fewer steps also
# stop at less noise.) The drawings are of the toy's world, unseen in training and not picked.

# %%
drawn = tasks(sd, len(chosen.seeds), chosen.seed)
clean = torch.cat([sd.encode_image(task.picture) for task in drawn])
conds, counts = sd.encode_text([task.prompts[0] for task in drawn]), sorted({5, 10, STEPS, 2 * STEPS})
ways = {n: to_noise(clean, conds, n)[0][-1] for n in counts}  # the noise of every drawing
errors = {n: [distance(from_noise(noise, conds, n, w), clean) for w in (1, GUIDANCE)] for n, noise in ways.items()}
columns = [f"guidance {w}: {what}" for w in (1, GUIDANCE) for what in ("median", "largest")]
values = {n: [float(error.quantile(q)) for error in errors[n] for q in (0.5, 1)] for n in counts}
rows = {f"{n} steps, from t = {sd.schedule.timesteps(n)[0]}": values[n] for n in counts}
table(f"{len(drawn)} unseen drawings, there and back: relative error of the latents", columns, rows)
show(curves(counts, dict(zip(columns, zip(*values.values()))), "steps", "relative error", ylim=(0, None)), chosen, "02_steps")

# %% [markdown]
# ## Why guidance misses
# Inversion follows eps_cond. Sampling with guidance w follows
#
#     eps_uncond + w (eps_cond - eps_uncond)  =  eps_cond + (w - 1) (eps_cond - eps_uncond)
#
# The last term is a push that inversion did not have. Mokady et al. give a second cause: guidance amplifies the small error of the
# inversion. To separate the two, we generate pictures at guidance 1, so that we know their true noise. From the true noise only the push
# acts (first column), from the inverted noise both do (last). The middle column is how far these two results are apart.

# %%
true = torch.cat([sd.init_latents(seed) for seed in chosen.seeds])
generated = from_noise(true, conds, STEPS, 1)
inverted = to_noise(generated, conds, STEPS)[0][-1]
rows = {}
for w in (1, 5, GUIDANCE):
    a, b = from_noise(true, conds, STEPS, w), from_noise(inverted, conds, STEPS, w)
    rows[f"guidance {w}"] = [float(distance(z, generated).mean()) for z in (a, generated + b - a, b)]
both = from_noise(to_noise(generated, conds, STEPS, GUIDANCE)[0][-1], conds, STEPS, GUIDANCE)
rows[f"also inverted at {GUIDANCE}"] = [None, None, float(distance(both, generated).mean())]
columns = ["true noise: push alone", "between true and inverted", "inverted noise: both"]
table(f"{len(true)} generated pictures, there and back: mean relative error of the latents", columns, rows)

# %% [markdown]
# The middle column is larger with guidance than without: guidance does amplify the inversion's error. But the first column, which has
# no such error, is larger still. (The last is not their sum, and even smaller than the first: the error partly cancels the push.) A perfect
# inversion would not return to the picture at guidance 7.5 either. Inverting at 7.5 as well (last row) does not help.
#
# ## An edit straight after the inversion
# The first object of each caption becomes another one, by the swap of lesson 3: a flower a tree, a cat a dog, a dog a cat, a house a
# castle. Success means that the detector finds the new object and not the old one. At guidance 1 source and background are kept best,
# but only 50 % of the edits succeed. At guidance 5 all do, but in the first two rows on pictures that are no longer the given ones.

# %%
rows, sheet = edits_after_ddim(sd, detect, drawn, STEPS, (1, 5))
table("one object swapped: PSNR against the drawing in dB, and edit success", ["source", "edit's background", "success"], rows)
labels = ["drawing", *(f"{name}: {part}" for name in rows for part in ("source", "edit"))]
show(grid(sheet[:4], (), labels, f"Swaps straight after DDIM inversion, {STEPS} steps"), chosen, "03_edits")

# %% [markdown]
# ## Unusual pictures
# Guidance pushes towards what the words usually look like. Four usual pictures have unusual twins, picked for this: a black cat, a house
# upside down, a huge ball, a castle on a cat. At 7.5 the house stands up, ball and castle are gone, the black cat has red spots. Each twin
# then comes back less exactly: the ball by far, the house clearly, the others a little (the last usual one changes colours as well).

# %%
rows, sheet = unusual(sd, STEPS, (1, GUIDANCE))
columns = ["VAE", "guidance 1", f"guidance {GUIDANCE}"]
table("PSNR in dB: the VAE against the given picture, there and back against the VAE", columns, rows)
labels = [f"{kind}: {what}" for kind in ("usual", "unusual") for what in ("given", *columns[1:])]
show(grid(sheet, (), labels, f"There and back, {STEPS} steps"), chosen, "04_unusual")

# %% [markdown]
# ## Exercises
# 1. Invert and sample the picture with words that do not fit, such as "a boat on the water". At which guidance does it suffer?
# 2. In `to_noise`, repeat each step with eps at the latents just reached. Does the error fall at guidance 1? And at 7.5?

# %%
finish()
