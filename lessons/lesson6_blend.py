"""Lesson 6: local blend, and stacking edits

You will see a red house become blue. Without a mask the tree beside it changes too, with a mask from the maps the tree stays.
You make the mask by hand, compare it with the library's, change its threshold, and see what inpainting does in a drawn mask.
At the end three edits and a blend act at once. The prompt was picked because its swap changes the tree as well. About a minute.

    make lesson6            # with other settings: make lesson6 SEED=7 STEPS=50 SEEDS=8
"""

# %%
import torch
import torch.nn.functional as F

import minip2p
from lessons.common import finish, load, settings, show, table
from lessons.measure import detector
from lessons.measure_edits import difference_picture, local_survey, mask_picture, record_seeds
from minip2p.attention_store import finest_low_resolution
from minip2p.figures import grid, mask_growth

chosen = settings("lesson6")
sd, detect = load(chosen), detector(chosen)
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
SOURCE = "a red house next to a tree on the grass"
PROMPTS = [SOURCE, SOURCE.replace("red", "blue")]
CAPTION = f"{SOURCE!r}, red -> blue, seed {SEED}, {STEPS} steps, guidance {GUIDANCE}"
recordings = record_seeds(sd, SOURCE, chosen.seeds[:1], chosen, GUIDANCE)  # the other seeds follow below


def run(edit, prompts=PROMPTS, recording=recordings[0]):
    """The edit of one recorded source."""
    return sd.generate(prompts, edit=edit, recording=recording, progress=False)


def swap_inside(**blend):
    """A swap that may change the picture only inside a local blend's mask; no arguments: everywhere."""
    return minip2p.Swap(sd.tokenizer, PROMPTS, blend=minip2p.LocalBlend(sd.tokenizer, PROMPTS, **blend) if blend else None)


# %% [markdown]
# ## A swap that changes too much
# Only the house should change, but the swap changes more: here the outline of the tree and some of the grass. Local blend keeps the
# source's picture outside a mask, and the mask is where the model attends to "house". The second row shows the mask (white: may change)
# and the differences from the source, four times as bright (black: none). With the blend they are almost gone from the tree. Small
# differences remain outside the mask: the blend works on latents, and the VAE computes each pixel from several of them.

# %%
everywhere, local = run(swap_inside()), run(swap_inside(words="house"))
source, *pair = everywhere.images[0], everywhere.images[1], local.images[1]
lines = [[source, *pair], [mask_picture(local), *(difference_picture(source, picture) for picture in pair)]]
show(grid(lines, ["", "mask and differences"], ["source", "swap", "swap and local blend"], CAPTION), chosen, "01_local")

# %% [markdown]
# ## The mask by hand
# After every step, let M be the maps of "house" in the 16 x 16 layers, averaged over heads and layers and added up over the steps
# so far. One M is the source's, one is the target's. Then
#
#     mask = (3 x 3 max pool of M) > 0.3 * its maximum, in the source or in the target
#     z_target <- z_source + mask * (z_target - z_source)      from 20 % of the steps on
#
# The blend does not touch the maps. It only changes the target's latents after a step, which is the method `after_step`.

# %%
SITES = finest_low_resolution(sd.unet.sites(*local.latents.shape[-2:]))
HOUSE = sd.tokenizer.positions(SOURCE, "house")  # the same positions in both prompts


class BlendByHand(minip2p.AttentionEdit):
    """A swap, and after each step the source's latents outside the mask."""

    def __init__(self):
        self.swap = swap_inside().prepare(sd.device)

    def at(self, step, steps):
        self.step_swap, self.active, self.maps = self.swap.at(step, steps), step >= int(0.2 * steps), []
        self.M = 0 if step == 0 else self.M
        return self

    def wants(self, site):
        return site in SITES or self.step_swap.wants(site)

    def __call__(self, attn, site):  # (2, heads, pixels, tokens): the source first
        if self.step_swap.wants(site):
            attn = self.step_swap(attn, site)
        if site in SITES:
            self.maps.append(attn.mean(1)[..., HOUSE].sum(-1).view(2, 1, site.height, site.width))
        return attn

    def after_step(self, z):  # (2, 4, h, w)
        self.M = self.M + torch.stack(self.maps).mean(0)
        pooled = F.interpolate(F.max_pool2d(self.M, 3, stride=1, padding=1), z.shape[-2:])
        mask = (pooled > 0.3 * pooled.amax((2, 3), keepdim=True)).any(0, keepdim=True).float()
        return torch.cat([z[:1], z[:1] + mask * (z[1:] - z[:1])]) if self.active else z


by_hand = run(BlendByHand())
difference = (by_hand.latents - local.latents).abs().max() / local.latents.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% [markdown]
# ## How the mask settles
# The blend begins after 20 % of the steps, because a model's first maps may be diffuse, and then the first mask is too large. The toy's
# maps are taught, and its mask is right from the first step. It comes from the sum of all maps so far, so it hardly changes later.

# %%
show(mask_growth(local, swap_inside(words="house"), CAPTION), chosen, "02_mask")

# %% [markdown]
# ## The threshold
# The threshold is a share of the map's own maximum. With a high one the mask covers only a part of the house: at 0.8 the chimney lies
# outside and keeps the source's brown. Between 0.15 and 0.5 there is little difference, because the map has sharp edges.
# (`LocalBlend(..., exclude="tree")` would also remove the places of other words.)

# %%
CHOICES = {f"threshold {value}": {"words": "house", "threshold": value} for value in (0.15, 0.3, 0.5, 0.8)}
results = [run(swap_inside(**choice)) for choice in CHOICES.values()]
lines = [[result.images[1] for result in results], [mask_picture(result) for result in results]]
notes = [[f"mask {result.masks[-1].mean():.0%}" for result in results], [""] * len(results)]
show(grid(lines, ["", "mask at the end"], list(CHOICES), CAPTION, notes), chosen, "03_threshold")

# %% [markdown]
# ## A mask drawn by hand, and inpainting
# `LocalBlend(..., mask=picture)` takes a drawn mask. Here the detector draws a box around the source's house. Earlier editing methods
# used a drawn mask and a new prompt, but no attention maps. They drew the inside of the mask from fresh noise (Blended Diffusion,
# Avrahami et al. 2022), and what lay under the mask was lost. "Inpainting" here: the same mask, new noise, no map replaced.
#
# Outside the box nothing should change: PSNR compares source and edit there (in dB, higher is better). The swap changes it less than no
# control does; with a blend it stays. Inpainting changes it more than a blend in the same box: see the white specks of seed 0. Inside
# the box, layout is the correlation of the edges with the source's. Inpainting draws another house, so layout is low.

# %%
recordings += record_seeds(sd, SOURCE, chosen.seeds[1:], chosen, GUIDANCE)
results, rows = local_survey(sd, detect, recordings, PROMPTS, "house", "blue", chosen, GUIDANCE)
pairs = zip(results["swap in the box"], results["inpainting the box"])
lines = [[boxed.images[0], mask_picture(boxed), boxed.images[1], inpainted.images[1]] for boxed, inpainted in pairs]
names, SEEDS = ["source", "drawn mask", "Prompt-to-Prompt in it", "inpainting in it"], [f"seed {seed}" for seed in chosen.seeds]
show(grid(lines, SEEDS, names, f"{SOURCE!r}, red -> blue"), chosen, "04_drawn")
table(f"red -> blue house, {SEEDS[0]} to {SEEDS[-1]}", ["mask", "PSNR outside (dB)", "layout inside", "blue house"], rows)

# %% [markdown]
# ## Stacking
# All edits of lessons 3 to 5 are one formula:
#
#     edited = (S @ mapper + A * (1 - has_source)) * equalizer
#
# (lesson 4 explains `mapper` and `has_source`), so they combine. The token "blue" takes the map of "red". The new word "cloudy" has
# no source and keeps its own map A. Its weight sets `equalizer` to 3 there: at seed 2 one cloud becomes two, elsewhere little changes
# (lesson 5). The blend acts after each step and keeps the tree. It adds up the maps of both of its words before the threshold, so clouds
# are left out where their attention is much weaker than the house's.

# %%
FAR = [SOURCE, f"{PROMPTS[1]}, cloudy"]
swap = minip2p.Swap(sd.tokenizer, FAR)
blend = minip2p.LocalBlend(sd.tokenizer, FAR, ["house", "cloudy"], threshold=0.5)
cloudier, confined = (minip2p.Reweight(sd.tokenizer, FAR, {"cloudy": 3.0}, base=swap, blend=part) for part in (None, blend))
runs = [[run(swap_inside(), recording=r), *(run(edit, FAR, r) for edit in (swap, cloudier, confined))] for r in recordings]
lines = [[row[0].images[0], *(result.images[1] for result in row), mask_picture(row[-1])] for row in runs]
names = ["source", "red -> blue", "and add\ncloudy", "and re-weight\ncloudy × 3", "and blend at\nhouse, cloudy", "its mask"]
show(grid(lines, SEEDS, names, f"{FAR[0]!r} -> {FAR[1]!r}"), chosen, "05_stack")

# %% [markdown]
# ## Exercises
# 1. Let the blend start at 0.8: swap_inside(words="house", start=0.8). Compare the difference picture with the one of 01_local.
# 2. Give a word and the drawn mask, mask_picture(results["swap in the box"][0]), to one LocalBlend. Which one decides?
# 3. Swap a cat for a dog, with words=["cat", "dog"]. What does each word add to the mask? When would it matter?

# %%
result = sd.generate(FAR, seed=SEED, steps=STEPS, guidance=GUIDANCE, edit=confined, record="all", progress=False)
show(minip2p.explore(sd, result, confined), chosen, "06_explore")
finish()
