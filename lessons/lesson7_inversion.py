"""DDIM inversion: the noise a photograph would have come from, and why coming back from it with guidance fails.

You will see a picture walked back to noise and forth again: exactly, nearly, and not at all, depending on what the way back
is told; whether guidance amplifies an error or makes one of its own; how the error shrinks with more steps; an edit straight
after the inversion; and pictures unlike any in training. The "photographs" are drawn ones that the toy has never seen
(lessons/photographs.py), and one is real. One to two minutes on two CPU cores.

    make lesson7            or, with other settings:            make lesson7 STEPS=20 SEEDS=2
"""

# %% Settings
from dataclasses import replace

import torch
from torch import Tensor

import minip2p
from lessons.common import load, psnr, save, settings, spent, swapped
from lessons.photographs import PORTRAIT, photograph, unseen
from minip2p import plots
from minip2p.ddim import ddim_step
from minip2p.images import open_image

chosen = settings("lesson7")
STEPS, GUIDANCE = chosen.steps, 7.5
sd = load(chosen)
SIZE = sd.check_size(None)
photo, PROMPT = photograph("house")
photo = open_image(photo, SIZE)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def decibels(a, b) -> float:
    """The mean PSNR of two lists of pictures."""
    return sum(psnr(*pair) for pair in zip(a, b)) / len(a)


# %% To noise and back, by hand
# A DDIM step is one line that moves a latent along the predicted noise, from one noise level to another (lesson 1). With the
# levels the other way round the same line puts noise in. But there is a catch: on the way back the network will be asked
# about the noisier latent, and on the way there we do not have that yet. We ask about the one at hand instead, but at the
# timestep of the noisier one, at which the way back will ask. Latent and timestep do not quite belong together: that is the
# whole error of this inversion.
@torch.no_grad()
def to_noise(z: Tensor, text: Tensor, steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """All latents from the clean one to noise, and the noises predicted between them."""
    timesteps, alphas = sd.schedule.timesteps(steps), sd.schedule.alphas(steps)
    path, noises = [z], []
    for i in reversed(range(steps)):
        noises.append(sd.schedule.noise(sd.unet(z.to(sd.dtype), timesteps[i], text).float(), z, alphas[i]))
        z = ddim_step(z, noises[-1], alphas[i + 1], alphas[i])
        path.append(z)
    return path, noises


@torch.no_grad()
def back(z: Tensor, text: Tensor, guidance: float, steps: int) -> list[Tensor]:
    """All latents of an ordinary generation from z, listed from clean to noise like those of `to_noise`."""
    timesteps, alphas = sd.schedule.timesteps(steps), sd.schedule.alphas(steps)
    path, no_text = [z], sd.encode_text("").expand_as(text)
    for i, t in enumerate(timesteps):
        noise = sd.schedule.noise(sd.unet(z.to(sd.dtype), t, text).float(), z, alphas[i])
        if guidance != 1:
            without = sd.schedule.noise(sd.unet(z.to(sd.dtype), t, no_text).float(), z, alphas[i])
            noise = without + guidance * (noise - without)
        z = ddim_step(z, noise, alphas[i], alphas[i + 1])
        path.append(z)
    return path[::-1]


z0, text = sd.encode_image(photo), sd.encode_text(PROMPT)
pivot, noises = to_noise(z0, text, STEPS)

# %% The same with the library
inversion = minip2p.invert(sd, photo, PROMPT, method="ddim", steps=STEPS, guidance=GUIDANCE)
by_hand = torch.cat(pivot)
difference = (by_hand - inversion.latents).abs().max() / inversion.latents.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% There and back
# If the way back uses the very noises of the way there, each step undoes its twin: only round-off is left. If the network
# is asked again, it is asked about slightly other latents, and answers slightly differently.
z, alphas = pivot[-1], sd.schedule.alphas(STEPS)
for i in range(STEPS):
    z = ddim_step(z, noises[-1 - i], alphas[i], alphas[i + 1])
paths = {guidance: back(pivot[-1], text, guidance, STEPS) for guidance in (1, 3, GUIDANCE)}
print(f"back with the recorded noises: relative error {relative(z, z0):.1e}")
for guidance, path in paths.items():
    print(f"back, asking again at guidance {guidance}: relative error {relative(path[0], z0):.1e}")

# %% Where the error comes from
# The distance between the way back and the pivot, the way there, at every step. Both begin in the same noise. At guidance
# 1 they stay close. Guidance pushes away from what the picture looks like without its prompt; no step of the way there did.
lines = {f"guidance {guidance}": [relative(a, b) for a, b in zip(path, pivot)][::-1] for guidance, path in paths.items()}
figure = plots.curve(
    range(STEPS + 1), lines, "steps done on the way back", "distance to the pivot,\nrelative",
    f"{PROMPT!r}, {STEPS} steps: how far the way back is from the way there",
)  # fmt: skip
save(figure, chosen, "01_distance")

names = {1: "back at\nguidance 1", 3: "back at\nguidance 3", GUIDANCE: f"back at\nguidance {GUIDANCE}"}
vae = sd.decode_latents(z0)[0]
rebuilt = {guidance: sd.decode_latents(path[0])[0] for guidance, path in paths.items()}
figure = plots.pictures(
    [[photo, vae, *rebuilt.values()]],
    [["the photograph", f"through the VAE\n{psnr(vae, photo):.1f} dB"]
     + [f"{names[guidance]}: {psnr(picture, photo):.1f} dB" for guidance, picture in rebuilt.items()]],
    f"{PROMPT!r}, {STEPS} steps; PSNR to the photograph\nWhat the VAE alone loses, no inversion brings back",
)  # fmt: skip
save(figure, chosen, "02_back")

# %% Is it the inversion's error that guidance amplifies?
# So it is usually told (Mokady et al. 2022). Take a picture that the model drew itself at guidance 1, from noise we have.
# Coming back from that very noise there is no inversion error, so what is missed with guidance is guidance's own doing: it
# leads elsewhere. Then invert the same picture, and come back from there: how much worse the third row is than the second is
# the inversion's error, amplified or not (on the toy, with guidance, it is no worse). The first row is another picture.
own = sd.generate(PROMPT, seed=chosen.seed, steps=STEPS, guidance=1)
print("\nrelative error of the way back, for two pictures of the same prompt")
print(f"{'':42}" + "".join(f"{f'guidance {guidance}':>14}" for guidance in paths))
for name, noise, clean in (
    ("the photograph, inverted", pivot[-1], z0),
    ("a generated picture, from its own noise", own.start, own.latents),
    ("the same generated picture, inverted", to_noise(own.latents, text, STEPS)[0][-1], own.latents),
):
    missed = [relative(back(noise, text, guidance, STEPS)[0], clean) for guidance in paths]
    print(f"{name:42}" + "".join(f"{error:>14.3f}" for error in missed))

# %% More steps, smaller steps
# The closer neighbouring latents are, the smaller the error of that substitution. Each step's error goes with the square of
# its length; twice as many of half the length leave half. That holds for short steps only. (And 5 steps go to t = 801 only,
# 100 go to 991: few steps have a shorter way, which flatters them.) Three pictures at once: the functions above take any
# number of them, each with its own text.
three = [photograph(name) for name in ("house", "cat_on_a_car", "dog_and_castle")]
clean = torch.cat([sd.encode_image(open_image(picture, SIZE)) for picture, _ in three])
texts = sd.encode_text([caption for _, caption in three])
counts = [steps for steps in (5, 10, 20, 50, 100) if steps <= 2 * STEPS]
errors = []
for steps in counts:
    found = back(to_noise(clean, texts, steps)[0][-1], texts, 1, steps)[0]
    errors.append(sum(relative(a, b) for a, b in zip(found, clean)) / len(three))
    print(f"there and back at guidance 1 in {steps} steps: relative error {errors[-1]:.3f}")
lines = {"measured": errors, "if twice the steps halved it": [errors[-1] * counts[-1] / steps for steps in counts]}
figure = plots.curve(
    counts, lines, "steps", "relative error", f"There and back at guidance 1 in so many steps, mean of {len(three)} pictures"
)
figure.axes[0].set(xscale="log", yscale="log")
save(figure, chosen, "03_steps")

# %% An edit straight away
# The noise is one from which the model makes nearly this picture, at guidance 1. But at 1 a new word is drawn feebly (look at
# the figure), and with more the source beside it is no longer the photograph.
PROMPTS = [PROMPT, PROMPT.replace("house", "castle")]
swap = minip2p.Swap(sd.tokenizer, PROMPTS, cross_replace_steps=0.8, self_replace_steps=0.4)
edits = {}
for guidance in (1, GUIDANCE):
    edits[guidance] = sd.generate(PROMPTS, inversion=replace(inversion, guidance=guidance), edit=swap)
    print(f"edit at guidance {guidance}: the source {psnr(edits[guidance].images[0], photo):.1f} dB to the photograph")
difference = (paths[GUIDANCE][0] - edits[GUIDANCE].latents[:1]).abs().max() / edits[GUIDANCE].latents.abs().max()
print(f"the source beside the edit and the way back by hand: largest relative difference {difference:.1e}")
figure = plots.pictures(
    [[photo, *edits[1].images, *edits[GUIDANCE].images]],
    [["the photograph", "guidance 1:\nthe source", "guidance 1:\nhouse -> castle", f"guidance {GUIDANCE}:\nthe source",
      f"guidance {GUIDANCE}:\nhouse -> castle"]],
    f"{PROMPT!r}, house -> castle straight after DDIM inversion, {STEPS} steps",
)  # fmt: skip
save(figure, chosen, "04_edit")

# %% Measured, not picked: unusual subjects
# Guidance draws towards what the prompt usually looks like. Is an unusual subject lost first? Each odd picture has a usual
# twin: the same place and the same things, as the toy's training had them. Beside them further unseen pictures, and a
# photograph of the real world, of which the toy knows neither the things nor the words. The VAE's own loss differs from
# picture to picture, so the way back is compared with what the VAE makes of it. And an edit straight away: does a judge find
# the new noun, and not the old one? These are few pictures, and dB count colours that no caption names as much as shapes:
# look at all of them. On the toy, at 7.5, the shapes and arrangements that go are the odd ones (the house on its roof stands
# up), colours go in the usual ones too, and the black cat is green before any inversion, by the VAE.
PAIRS = {
    "cat": ("cat", "dog"),
    "house_in_snow": ("house", "castle"),
    "ball": ("ball", "flower"),
    "on_the_sand": ("castle", "house"),
}
groups = {
    "unseen pictures": [unseen(number) for number in range(chosen.seed, chosen.seed + chosen.seeds)],
    "twins": [photograph(name) for name in PAIRS],
    "odd ones": [photograph(f"{name}_odd") for name in PAIRS],
    "a real photograph": [(PORTRAIT, "a woman in a uniform in front of a flag")],
}
print(f"\n{STEPS} steps, inverted at guidance 1; PSNR in dB, the VAE's to the photograph, the others to the VAE's picture")
print(f"{'':50}{'VAE':>8}{'back at 1':>12}{f'back at {GUIDANCE}':>14}{'swapped':>10}")
sheet = {}
for name, members in groups.items():
    pictures = [open_image(picture, SIZE) for picture, _ in members]
    clean, texts = torch.cat([sd.encode_image(picture) for picture in pictures]), sd.encode_text([words for _, words in members])
    noise = to_noise(clean, texts, STEPS)[0][-1]
    ways = [clean, *(back(noise, texts, guidance, STEPS)[0] for guidance in (1, GUIDANCE))]
    sheet[name] = [pictures, *(sd.decode_latents(latents) for latents in ways)]
    _, through, at_one, guided = sheet[name]
    compared = list(zip((through, at_one, guided), (pictures, through, through)))
    mean = [decibels(*pair) for pair in compared]
    print(f"{f'{name}, mean of {len(pictures)}':50}{mean[0]:>8.1f}{mean[1]:>12.1f}{mean[2]:>14.1f}")
    for i, ((_, words), (old, new)) in enumerate(zip(members, PAIRS.values() if name in ("twins", "odd ones") else ())):
        prompts = [words, words.replace(old, new)]
        edit = minip2p.Swap(sd.tokenizer, prompts, cross_replace_steps=0.8, self_replace_steps=0.4)
        result = sd.generate(prompts, steps=STEPS, guidance=GUIDANCE, latents=noise[[i]], edit=edit)
        each = [psnr(a[i], b[i]) for a, b in compared]
        done = "yes" if swapped(result.images[1], old, new) else "no"
        print(f"{f'    {words}, {old} -> {new}':50}{each[0]:>8.1f}{each[1]:>12.1f}{each[2]:>14.1f}{done:>10}")

heads = ["photograph", "VAE alone", "back at 1", f"back at {GUIDANCE}"]
rows, titles = [], []
for i in range(len(PAIRS)):
    both = [("usual:\n", sheet["twins"]), ("odd:\n", sheet["odd ones"])]
    rows.append([column[i] for _, columns in both for column in columns])
    titles.append([f"{kind}{head}" if not i else "" for kind, _ in both for head in heads])
rows.append([column[0] for column in sheet["a real photograph"]] + [None] * len(heads))
titles.append(["a real\nphotograph", *(f"real:\n{head}" for head in heads[1:])] + [""] * len(heads))
save(
    plots.pictures(
        rows,
        titles,
        f"Usual pictures (left), odd ones of the same things (right), and a real photograph\nback from noise at guidance 1 and {GUIDANCE}, {STEPS} steps",
    ),
    chosen,
    "05_odd",
)
spent()

# %% Exercises
# 1. Invert with a prompt that does not fit, other = sd.encode_text("a boat on the water"), and come back with the same:
#    back(to_noise(z0, other, STEPS)[0][-1], other, guidance, STEPS). How much worse is guidance 1, and how much worse 7.5, than `paths`?
# 2. Ask twice: in `to_noise`, after each step, ask the network again about the latent just reached and repeat the step
#    with that noise. Print the relative error there and back at guidance 1. Do more repetitions help? (This is a fixed-point
#    iteration; Pan et al. 2023 use it.)
# 3. Invert at guidance 7.5 as well, with both texts on the way there. Is the way back better? Look at the standard deviation
#    of the last latent, which should be about 1: what has become of it, and what would an edit start from?
