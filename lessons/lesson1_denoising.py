"""Denoising: how noise becomes a picture, what guidance does, and where a negative prompt goes.

You will see Stable Diffusion's loop written out in a dozen lines, what the model believes the picture to be at each step,
the same noise at five guidance scales, sampling noise put back in by hand, and a negative prompt that argues against a colour.
About a minute on two CPU cores.

    make lesson1            or, with other settings:            make lesson1 SEED=7 STEPS=20
"""

# %% Settings
import torch

from lessons.common import as_array, explains, load, psnr, save, settings, spent
from minip2p import plots
from minip2p.ddim import predict_clean
from minip2p.panels import some

chosen = settings("lesson1")
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
SEEDS = range(SEED, SEED + chosen.seeds)
PROMPT = "a cat next to a house in the snow"
sd = load(chosen)


def caption(what: str) -> str:
    return f"{PROMPT!r}: {what}\nseed {SEED}, {STEPS} steps, guidance {GUIDANCE}"


# %% From a prompt to numbers
# The tokenizer cuts the prompt into tokens, puts a start and an end token around them and pads to a fixed number.
# The text encoder makes one vector of each; the network never sees anything else of the prompt.
tokens = sd.tokenizer(PROMPT)
text = sd.text_encoder(tokens.to(sd.device)).detach()
no_text = sd.text_encoder(sd.tokenizer("").to(sd.device)).detach()
print("tokens:", tokens[0, :12].tolist(), "...", "->", "text embedding", tuple(text.shape))

# %% The schedule, and one step of it
# Stable Diffusion does not work on pixels but on a latent: a picture of a fraction of the size, with four channels, which the
# VAE's decoder turns into pixels at the end. It was trained on a thousand noise levels t; a run of 50 steps visits every
# twentieth. A noisy latent is z = sqrt(a) z_0 + sqrt(1 - a) e: a part of the clean latent z_0 and a part of Gaussian noise e,
# where a, the share of the picture in the variance, grows from step to step. The network looks at z and predicts e. Solving
# this equation for z_0 gives what it believes the clean latent to be. A step mixes that belief with the same e again, a
# little less of it.


def predict_noise(z, t, a, text, no_text):
    """The noise in z, predicted without the prompt and with it. Both in one batch, as the library does."""
    both = torch.cat([no_text.expand(len(z), -1, -1), text.expand(len(z), -1, -1)])
    twice = torch.cat([z, z])
    output = sd.unet(twice.to(sd.dtype), t, both).float()
    return sd.schedule.noise(output, twice, a).chunk(2)  # most models put out e; some a mixture of e and z_0, which this undoes


@torch.no_grad()
def denoise(z, text, no_text, steps, draws=()):
    """Every (noisy latent, belief at guidance 1, guided belief) on the way, and the latent at its end.

    draws: fresh noise for each step, which makes the sampler random (sigma > 0); none is DDIM (sigma = 0).
    """
    path, alphas = [], sd.schedule.alphas(steps)
    for i, t in enumerate(sd.schedule.timesteps(steps)):
        a_from, a_to = alphas[i], alphas[i + 1]
        without, with_text = predict_noise(z, t, a_from, text, no_text)
        # Guidance: the difference that the prompt makes, times GUIDANCE. 0 does not hear the prompt, 1 is the plain
        # prediction with it, more exaggerates it (Ho & Salimans 2022, whose w is 1 less).
        noise = without + GUIDANCE * (with_text - without)
        clean = (z - (1 - a_from) ** 0.5 * noise) / a_from**0.5  # Song et al. 2020, eq. 9; also predict_clean(z, noise, a_from)
        path.append((z, predict_clean(z, with_text, a_from), clean))
        sigma = ((1 - a_to) / (1 - a_from) * (1 - a_from / a_to)) ** 0.5 if draws else 0.0  # eq. 16 with eta = 1: as DDPM
        z = a_to**0.5 * clean + (1 - a_to - sigma**2) ** 0.5 * noise  # eq. 12
        z = z + sigma * draws[i] if draws else z
    return path, z


def largest_difference(a, b):
    """As a share of the largest number in b."""
    return float((a - b).abs().max() / b.abs().max())


# %% By hand and by library
start = torch.randn((1, *sd.noise(SEED).shape[1:]), generator=torch.Generator().manual_seed(SEED)).to(sd.device)
path, by_hand = denoise(start, text, no_text, STEPS)
result = sd.generate(PROMPT, seed=SEED, steps=STEPS, guidance=GUIDANCE)
difference = largest_difference(by_hand, result.latents)
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% What the model believes
# A network trained to predict the noise, by its squared error, learns the mean of what it may be, so its belief is the mean
# of all clean latents that fit what it sees (second row). In the first steps many fit, and the mean of many pictures is none
# of them. Guidance leaves the mean behind, in the direction of the prompt (third row), and that is what the steps are built
# on.
alphas, shown = sd.schedule.alphas(STEPS), some(STEPS, 8)
frames = [sd.decode_latents(torch.cat([path[i][k] for i in shown])) for k in range(3)]
figure = plots.sweep(
    frames,
    ["noisy latent", "belief,\nguidance 1", f"belief,\nguidance {GUIDANCE}"],
    [f"step {i + 1}\na = {alphas[i]:.2f}" for i in shown],
    caption("the latent and what the model believes it shows, decoded; a: the clean latent's share"),
)
save(figure, chosen, "01_beliefs")

# How far each is from the finished latent, as a share of its length: a guess of nothing but zeros would be 1 away. Where the
# guided belief is further, it overshoots: guidance multiplies the pull of the prompt, and eq. 9 divides by a small sqrt(a).
names = ["the noisy latent", "the belief, guidance 1", f"the belief, guidance {GUIDANCE}"]
distances = {name: [float((step[k] - by_hand).norm() / by_hand.norm()) for step in path] for k, name in enumerate(names)}
figure = plots.curve(range(1, STEPS + 1), distances, "step", "distance to the end", caption("how far from the finished latent"))
save(figure, chosen, "02_distance")

# %% Nothing is sampled on the way
# With sigma = 0 a step has no random number in it, and the same start gives the same picture to the last bit. With sigma > 0
# each step puts in fresh noise, and one seed has many pictures. Three draws here, each with two starts.
again = sd.generate(PROMPT, seed=SEED, steps=STEPS, guidance=GUIDANCE)
print(f"sigma = 0, twice from seed {SEED}: largest difference {largest_difference(again.latents, result.latents):.0e}")
starts = torch.cat([sd.noise(SEED), sd.noise(SEED + 1)])
dice = torch.Generator().manual_seed(SEED + 1000)
draws = [torch.randn((3, *starts.shape[1:]), generator=dice).to(sd.device).repeat(2, 1, 1, 1) for _ in range(STEPS)]
sampled = sd.decode_latents(denoise(starts.repeat_interleave(3, 0), text, no_text, STEPS, draws)[1])
other = sd.generate(PROMPT, seed=SEED + 1, steps=STEPS, guidance=GUIDANCE)
rows = [[result.images[0], *sampled[:3]], [other.images[0], *sampled[3:]]]
heads = ["sigma = 0", "sigma > 0\nfirst draws", "second draws", "third draws"]
figure = plots.sweep(rows, [f"seed {SEED}", f"seed {SEED + 1}"], heads, caption("with and without sampling noise"))
save(figure, chosen, "03_sigma")


def mean(values):
    values = list(values)
    return sum(values) / len(values)


# What decides the picture then, the start or the draws? The more alike two pictures are, the higher the PSNR.
other_draws = mean(psnr(sampled[i], sampled[j]) for i, j in [(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)])
other_start = mean(psnr(sampled[i], sampled[i + 3]) for i in range(3))
both_other = mean(psnr(sampled[i], sampled[j + 3]) for i in range(3) for j in range(3) if i != j)
print(f"PSNR with sigma = 0: another start {psnr(result.images[0], other.images[0]):.1f} dB")
print(
    f"PSNR with sigma > 0: same start, other draws {other_draws:.1f} dB; another start, same draws {other_start:.1f} dB; "
    f"both other {both_other:.1f} dB"
)

# %% Guidance
# At 0 the prompt is not heard; 1 is the model as it was trained: the noise predicted with the prompt. Beyond 1 the prediction
# is pushed on in the direction in which the prompt pulled it, further than anything in the training: a hack that works.
# `latents` may be a batch of starts, so all seeds of a guidance scale are one call.
SCALES = (0, 1, 3, 7.5, 15)
starts, many = torch.cat([sd.noise(seed) for seed in SEEDS]), len(SEEDS)
guided = {w: sd.generate([PROMPT] * many, steps=STEPS, guidance=w, latents=starts) for w in SCALES}
figure = plots.sweep(
    [[guided[w].images[i] for w in SCALES] for i in range(many)],
    [f"seed {seed}" for seed in SEEDS],
    [f"guidance {w}" for w in SCALES],
    f"{PROMPT!r}: guidance 0 to 15 from the same noise\n{STEPS} steps",
)
save(figure, chosen, "04_guidance")

# The same seed once more, now as one of a batch: sums are rounded in another order, and the steps amplify what that changes.
# "The same seed, the same picture" holds to the last bit on a CPU with one batch size and number of threads, elsewhere nearly.
batched = largest_difference(guided[GUIDANCE].latents[:1], result.latents)
print(f"seed {SEED} alone and in a batch of {many}: largest relative difference {batched:.0e}")

# %% A negative prompt
# "Without the prompt" is a prompt too, the empty one. Put words in its place, and each step moves away from what they would
# draw. By hand it is the same function with another embedding. The guidance line is also with_text + (w - 1)(with_text -
# without): the prompt itself, and 6.5 times its difference to the negative prompt. If that is the prompt with "red" added,
# the difference is little but redness. If it is the word alone, the difference is nearly everything that the prompt says, and
# there may even be more red: the last table counts it. At guidance 1 the half without the prompt cancels, and no negative
# prompt has a say.
RED = PROMPT.replace("cat", "red cat").replace("house", "red house")
negative = {"": guided[GUIDANCE]}
for words in ("red", RED):
    negative[words] = sd.generate([PROMPT] * many, steps=STEPS, guidance=GUIDANCE, latents=starts, negative=words)
figure = plots.sweep(
    [run.images for run in negative.values()],
    [f"negative: {words or 'none'}" for words in negative],
    [f"seed {seed}" for seed in SEEDS],
    f"{PROMPT!r}: with and without a negative prompt\n{STEPS} steps, guidance {GUIDANCE}",
)
save(figure, chosen, "05_negative")

away = sd.generate(PROMPT, seed=SEED, steps=5, guidance=GUIDANCE, negative=RED).latents
by_hand = denoise(start, text, sd.encode_text(RED).detach(), 5)[1]
print(
    f"by hand and by library, a negative prompt, five steps: largest relative difference {largest_difference(by_hand, away):.0e}"
)

# %% Measured, not picked
# Does the cat explain the picture better than another thing in its place? That is: noise is added, and the prompt with which
# the model predicts it best has won (`explains` in common.py). How far do the latents go? (Their scale was chosen so that
# those of real pictures have a standard deviation of 1.) How many colour values are at the end of their range? And how
# different are the pictures of different seeds, pixel by pixel?
RIVALS = [PROMPT.replace("cat", noun) for noun in ("cat", "dog", "car", "ball")]


def cats(run):
    """The share of pictures that the prompt explains better than its rivals do."""
    return mean(explains(sd, z[None], RIVALS, levels=8) == 0 for z in run.latents)


def red(picture):
    """The share of pixels whose red clearly exceeds both other colours."""
    r, g, b = as_array(picture).unbind(-1)
    return float((r - torch.maximum(g, b) > 0.4).float().mean())


print(f"\n{PROMPT!r}, seeds {SEEDS[0]} to {SEEDS[-1]}, {STEPS} steps; cats: one in {len(RIVALS)} by chance")
print(f"{'guidance':>10}{'a cat explains it best':>24}{'spread of latents':>19}{'colours at the end':>20}{'seeds differ by':>17}")
for w, run in guided.items():
    pictures = torch.stack([as_array(picture) for picture in run.images])
    at_the_end = ((pictures == 0) | (pictures == 1)).float().mean()
    apart = pictures.std(0, unbiased=False).mean()
    print(
        f"{w:>10}{cats(run):>24.0%}{run.latents.std():>19.2f}{at_the_end:>20.1%}{apart if many > 1 else '-':>17{'.1%' if many > 1 else ''}}"
    )
print(f"\n{'negative prompt':44}{'red pixels':>12}{'a cat explains it best':>24}")
for words, run in negative.items():
    print(f"{words or 'none':44}{mean(map(red, run.images)):>12.1%}{cats(run):>24.0%}")
spent()

# %% Exercises
# 1. At guidance 0 give another prompt: does any pixel change? And at guidance 7.5, with the prompt as its own negative?
#    Write down which guidance scale that equals, then subtract the latents.
# 2. Run `make lesson1 STEPS=25 OUT=out/25` and `make lesson1 STEPS=100 OUT=out/100` and compare lesson1/03_sigma.png in both. How
#    much of the first column changes? (With sigma = 0 the start alone gives a curve, and more steps follow it more closely. But
#    print sd.schedule.timesteps(25)[0] and that of 100: they do not begin at the same noise level.)
# 3. Try guidance -3. What is drawn, and what does the column "a cat explains it best" say about it?
