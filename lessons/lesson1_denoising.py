"""Lesson 1: noise becomes a picture

You will see a picture appear out of noise, step by step, and write the loop that does it: ten lines. Then you will turn the
one number that decides how closely the picture follows the prompt, the guidance. About 40 seconds on two CPU cores.

    make lesson1            # with other settings: make lesson1 SEED=7 STEPS=50 SEEDS=8

Lessons take 20 steps to save time; the library's default is 50.
"""

# %%
import torch

from lessons.common import ROOT, finish, load, percent, settings, show, table
from lessons.measure import detector, mean
from minip2p.figures import grid
from minip2p.images import open_image
from weights.scorecard.measures import pixels, psnr

chosen = settings("lesson1")
sd, detect = load(chosen), detector(chosen)  # detect is None unless the model is the toy
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
PROMPT, NOUNS = "a cat next to a house in the snow", ("cat", "house")
CAPTION = f"{PROMPT!r}, seed {SEED}, {STEPS} steps, guidance {GUIDANCE}"

# %% [markdown]
# ## The parts
# Stable Diffusion (Rombach et al. 2022) does not work on pixels. A *variational autoencoder*, VAE, compresses a picture to
# *latents* of 4 channels, an eighth as wide and high as the picture (in our toy a quarter). A *text encoder* turns the prompt into one
# vector per *token*, a word or a piece of a word. A *UNet* looks at noisy latents z_t, at the *timestep* t (how noisy they are), and at the
# text, and predicts the noise. Sampling starts with noise alone and removes a little of it in every step.

# %%
result = sd.generate(PROMPT, seed=SEED, steps=STEPS, guidance=GUIDANCE, record="all")
shown = [round(i * (STEPS - 1) / 7) for i in range(8)]
noisy = [sd.decode_latents(result.trajectory[step])[0] for step in shown]
predicted = [sd.decode_latents(result.pred_x0[step])[0] for step in shown]
columns = [f"step {step + 1}" for step in shown]
show(grid([noisy, predicted], ["latents z_t", "predicted x0"], columns, CAPTION), chosen, "01_steps")

# %% [markdown]
# The upper row shows the latents, decoded. The lower row shows, at the same steps, the clean picture that the UNet predicts
# ("predicted x0"). The prediction is blurred at first and settles from coarse to fine: place and size of the objects come first,
# their details last. An edit that keeps the layout must therefore act from the first step on. Lesson 3 measures for how long.
#
# ## By hand
# In training, clean latents x0 are mixed with noise: z_t = sqrt(a_t) x0 + sqrt(1 - a_t) noise. Here a_t is the share of the clean picture's
# variance (papers write alpha-bar). DDIM (Song et al. 2020) puts the predicted noise eps there, solves for x0, and mixes x0 with less of
# eps:
#
#     x0  = (z_t - sqrt(1 - a_t) eps) / sqrt(a_t)              the predicted clean latents
#     z_s = sqrt(a_s) x0 + sqrt(1 - a_s) eps                   the next latents, at the smaller timestep s
#
# Nothing is drawn at random after the start: the seed decides everything. *Classifier-free guidance* (Ho & Salimans 2022) asks
# the UNet twice, with the prompt ("cond") and with an empty prompt ("uncond"), and multiplies the difference by w:
#
#     eps = eps_uncond + w (eps_cond - eps_uncond)
#
# `to_eps` returns the UNet's output as noise. Stable Diffusion 2 at 768 pixels predicts another quantity, v, and `to_eps` converts v.

# %%
@torch.no_grad()
def denoise(z, prompt, w, unconditional=""):
    cond, uncond = sd.encode_text(prompt), sd.encode_text(unconditional)
    timesteps, a = sd.schedule.timesteps(STEPS), sd.schedule.alphas(STEPS)  # a has one entry more: 0.999, almost clean
    for i, t in enumerate(timesteps):
        eps_cond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond), z, a[i])
        eps_uncond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, uncond), z, a[i])
        eps = eps_uncond + w * (eps_cond - eps_uncond)
        x0 = (z - (1 - a[i]) ** 0.5 * eps) / a[i] ** 0.5
        z = a[i + 1] ** 0.5 * x0 + (1 - a[i + 1]) ** 0.5 * eps
    return z


by_hand = denoise(sd.init_latents(SEED), PROMPT, GUIDANCE)
difference = (by_hand - result.latents).abs().max() / result.latents.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% [markdown]
# ## The seed decides
# The same seed gives the same picture every time. Another seed gives another picture of the same prompt: size, place and colour of
# the house differ, while the cat is on the left at all four seeds. An edit has to keep the layout of one picture, so source and target
# begin with the same noise. Lesson 3 shows what happens if they do not.

# %%
runs = [sd.generate(PROMPT, seed=seed, steps=STEPS, guidance=GUIDANCE) for seed in chosen.seeds]
again = sd.generate(PROMPT, seed=SEED, steps=STEPS, guidance=GUIDANCE)
print(f"the same seed twice: largest difference of the latents {(again.latents - runs[0].latents).abs().max():.1e}")
columns = [f"seed {seed}" for seed in chosen.seeds]
show(grid([[run.images[0] for run in runs]], column_labels=columns, caption=f"{PROMPT!r}, {STEPS} steps"), chosen, "02_seeds")

# %% [markdown]
# ## Guidance
# The weight w decides how strongly the prompt counts. At w = 0 the prompt is not used: what the picture shows is chance. At w = 1
# the model is used as it was trained, and 7.5 is the usual value. A detector that we trained on the toy's world counts the pictures
# in which it finds both objects: all of them with every w above 0. Contrast is the standard deviation of the colours in [0, 1].
# Guidance raises the contrast. It also narrows the choice: at w = 3 the houses are pink, purple and yellow, at w = 15 all four are
# red. At w = 15 objects begin to break: see the cat of seed 0.

# %%
weights = [0.0, 1.0, 3.0, 7.5, 15.0]
sheet, rows = [], {}
for w in weights:
    pictures = [sd.generate(PROMPT, seed=seed, steps=STEPS, guidance=w).images[0] for seed in chosen.seeds]
    found = detect and percent([all(detect(picture).find(noun) for noun in NOUNS) for picture in pictures])
    rows[f"w = {w:g}"] = [found, mean([pixels(picture).std() for picture in pictures])]
    sheet.append(pictures)
show(grid(sheet, list(rows), columns, f"{PROMPT!r}, {STEPS} steps"), chosen, "03_guidance")
table(f"{PROMPT!r}, seeds {chosen.seeds[0]} to {chosen.seeds[-1]}", [f"{' and '.join(NOUNS)} found", "contrast"], rows)

# %% [markdown]
# ## The negative prompt
# The unconditional half need not be an empty prompt. Guidance moves away from whatever it says, so this is the place for what
# the picture should not show: the *negative prompt*. "a house" does not say a colour. With "a red house" as the negative prompt,
# walls and roofs become white or blue; other things may change, too. Null-text inversion (lesson 8) uses the same
# place for an embedding that it optimises.

# %%
HOUSE, NEGATIVE = "a house", "a red house"
pairs = [[sd.generate(HOUSE, seed=seed, steps=STEPS, negative=words).images[0] for seed in chosen.seeds] for words in ("", NEGATIVE)]
show(grid(pairs, ["negative: none", f"negative: {NEGATIVE!r}"], columns, f"{HOUSE!r}, {STEPS} steps"), chosen, "04_negative")
by_hand = sd.decode_latents(denoise(sd.init_latents(SEED), HOUSE, GUIDANCE, NEGATIVE))[0]
print(f"negative prompt by hand and by library: PSNR {psnr(by_hand, pairs[1][0]):.0f} dB (100 dB: the same picture)")

# %% [markdown]
# ## The VAE's share
# The VAE loses fine detail, so no edit can preserve that detail. PSNR measures how similar a picture is after encoding and
# decoding, in dB (higher is more alike). Here a generated picture and a drawn one, which the VAE never saw, lose about equally little.

# %%
drawn = open_image(ROOT / "lessons/images/house.png", result.images[0].size[::-1])
for name, picture in {"a generated picture": result.images[0], "a drawn picture": drawn}.items():
    print(f"{name} and the same through the VAE: PSNR {psnr(picture, sd.decode_latents(sd.encode_image(picture))[0]):.1f} dB")

# %% [markdown]
# ## Exercises
# 1. At which step can you first tell from the predicted x0 where the house will stand? Compare with STEPS=50.
# 2. Write guidance with w = 0 as one formula. Why does `generate` need one UNet call per step, and not two, at w = 1?
# 3. Give the same words as prompt and as negative prompt. Show by the formula, then with `denoise`, that w makes no difference.

# %%
finish()
