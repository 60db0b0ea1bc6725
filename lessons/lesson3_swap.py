"""Lesson 3: swap a word

You will see a cat become a dog while the house beside it stays where it is: by hand in 15 lines, and with the library. Figures
and tables over seeds ask which maps are needed, for how long, and from which noise. About 50 seconds on two CPU cores.

    make lesson3            # with other settings: make lesson3 SEED=7 STEPS=50 SEEDS=8
"""

# %%
import torch

import minip2p
from lessons.common import finish, load, settings, show, table
from lessons.measure import detector, mixed_embeddings, run_beside, swap_row
from minip2p.figures import grid
from minip2p.figures.panels import Panel, panel_figure
from minip2p.scheduler import ddim_step
from weights.scorecard.measures import layout

chosen = settings("lesson3")
sd, detect = load(chosen), detector(chosen)
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
SOURCE, OLD, NEW = "a cat next to a house in the snow", "cat", "dog"
PROMPTS, WORDS = [SOURCE, SOURCE.replace(OLD, NEW)], f"{SOURCE!r}, {OLD} -> {NEW}, {STEPS} steps, guidance {GUIDANCE}"
RUN = {"seed": SEED, "steps": STEPS, "guidance": GUIDANCE}

# %% [markdown]
# ## With and without control
# Both prompts start from the same noise. Without control the new prompt draws a new picture, in which everything may change: here the
# house shrinks and moves. With Prompt-to-Prompt the new word takes the place of the old one, and the rest keeps its place.

# %%
swap = minip2p.Swap(sd.tokenizer, PROMPTS, cross_replace_steps=0.8, self_replace_steps=0.4)
edited = sd.generate(PROMPTS, edit=swap, record="all", **RUN)
free = sd.generate(PROMPTS, **RUN)
names = ["source", f"{NEW}, no control", f"{NEW}, Prompt-to-Prompt"]
show(grid([[*free.images, edited.images[1]]], (), names, f"{WORDS}, seed {SEED}"), chosen, "01_swap")

# %% [markdown]
# ## By hand
# A cross-attention map holds, for each pixel, its share of attention for one token (lesson 2). Let S be the source's maps and
# A the target's own maps. When both words have the same number of tokens:
#
#     A <- S    in cross-attention, during the first 80 % of the steps
#     A <- S    in self-attention of at most 16 x 16 pixels (the authors' limit), during the first 40 % of the steps
#
# Word maps say where a word is drawn. Self-attention maps say which pixels belong together, and so hold outlines. Self-attention is
# released sooner, so that the new object can get an outline of its own. What the new word draws comes from its own value vectors V,
# which are not replaced. Only the conditional half of guidance is edited. The unconditional half reads the same empty prompt for source
# and target, so it has no word to exchange. (Its self-attention could be replaced, too; the authors do not, and we did not try.)

# %%
def edit_at(step):
    def edit(attn, site):  # (2, heads, pixels, tokens), the source first
        source, target = attn[:1], attn[1:]
        if site.kind == "cross" and step < int(0.8 * STEPS):
            target = source
        if site.kind == "self" and step < int(0.4 * STEPS) and site.height * site.width <= 16 * 16:
            target = source
        return torch.cat([source, target])

    return edit


@torch.no_grad()
def denoise(z, cond, uncond, edit_at):
    for step, (t, a, a_next) in enumerate(sd.schedule.levels(STEPS)):
        eps_uncond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, uncond), z, a)
        eps_cond = sd.schedule.to_eps(sd.unet(z.to(sd.dtype), t, cond, edit=edit_at(step)), z, a)
        z = ddim_step(z, eps_uncond + GUIDANCE * (eps_cond - eps_uncond), a, a_next)
    return z


by_hand = denoise(sd.init_latents(SEED).expand(2, -1, -1, -1), sd.encode_text(PROMPTS), sd.encode_text(["", ""]), edit_at)
difference = (by_hand - edited.latents).abs().max() / edited.latents.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% [markdown]
# ## The maps before and after
# The same swap from several seeds, which nobody picked. Without control, dog and house change places at seeds 1 to 3. With
# Prompt-to-Prompt the house keeps place and outline, but colours may change: it turns light pink at seeds 1 and 2, red at seed 3. Local
# blend (lesson 6) keeps colours. The maps are means over all steps. So the map of "dog" has the shape of the cat: for 80 % of the steps it
# is the cat's. To save time, the source is recorded once, and `run_beside` runs all targets in one batch, each with its own edit.

# %%
recordings = [sd.record(SOURCE, seed=seed, steps=STEPS, guidance=GUIDANCE, progress=False) for seed in chosen.seeds]
runs = run_beside(sd, recordings, PROMPTS[1], [None, swap], record=True)  # of each: source, no control, Prompt-to-Prompt
seeds, sources = [f"seed {seed}" for seed in chosen.seeds], [run.images[0] for run in runs]
rows = []
for run in runs:
    before = [Panel("source", run.images[0]), Panel(f"map of {OLD!r}", share=run.maps.word(OLD, 0, mean=True))]
    after = [Panel(f"{NEW}, Prompt-to-Prompt", run.images[2]), Panel(f"map of {NEW!r}", share=run.maps.word(NEW, 2, mean=True))]
    rows.append([*before, Panel(f"{NEW}, no control", run.images[1]), *after])
show(panel_figure(rows, f"{WORDS}; maps: mean over steps, heads and {runs[0].maps.layers()}", row_labels=seeds), chosen, "02_maps")

# %% [markdown]
# ## Which maps, and for how long?
# The figure swaps the cat for a tree, whose shape is another one. In the column "n-th map" only the map of the swapped word, the n-th
# token, is replaced; all other maps are the target's own. (The library allows one window per word.) A pair of numbers is the window of
# all word maps and that of self-attention, in shares of the steps. The paper's authors use 0.8 and 0.4. *Layout* in the table is the
# correlation of the edges with the source's (1: the same outlines). A detector of the toy's objects looks for the tree, and for a cat
# that is left. With four seeds, 25 % is one picture; weights/scorecard has 205 swaps.

# %%
SHAPE = "tree"
TREE = [SOURCE, SOURCE.replace(OLD, SHAPE)]
# name: (cross_replace_steps, self_replace_steps)
WINDOWS = {"no control": (0, 0), "n-th map, 0.8": ({"default_": 0, SHAPE: 0.8}, 0)}
WINDOWS |= {f"{maps}/{own}": (maps, own) for maps, own in ((0.2, 0), (0.8, 0), (0.8, 0.4), (1, 0.4), (0.8, 0.8), (1, 1))}
swept = run_beside(sd, recordings, TREE[1], [minip2p.Swap(sd.tokenizer, TREE, *windows) for windows in WINDOWS.values()])
sweep = dict(zip(WINDOWS, zip(*(run.images[1:] for run in swept))))  # name -> the picture of each seed
caption = f"{SOURCE!r}, {OLD} -> {SHAPE}, {STEPS} steps, guidance {GUIDANCE}"
show(grid(list(zip(sources, *sweep.values())), seeds, ["source", *sweep], caption), chosen, "03_windows")
rows = {name: swap_row(detect, sources, pictures, OLD, SHAPE) for name, pictures in sweep.items()}
table(f"{OLD} -> {SHAPE}, {seeds[0]} to {seeds[-1]}", [f"{SHAPE}, no {OLD}", "layout"], rows)

# %% [markdown]
# From 0.8/0 down, every row keeps more of the layout than the row above. With the n-th map no house is the source's (that of seed 1 is
# purple; seed 2 has two houses and no tree, as with 0.2/0). All word maps for 80 % of the steps (0.8/0) bring the layout from 0.24 to
# 0.37. The first 20 % are not enough, although the source's maps settle that early (lesson 2): then the target's own maps are back.
#
# With self-attention (0.8/0.4) the house has the source's place and outline at seeds 1 to 3 (that of seed 0 is mirrored). But it holds the
# old object's outline, too. A tree has another outline than a cat, and may be lost: at 0.8/0.4 the tree of seed 2 is a bush with a trace of
# the cat's tail, at 0.8/0.8 only 25 % are found, at 1/1 none, and some pictures turn grey. A window of 1 for the word maps (1/0.4) changes
# little here: the last steps draw details, and 0.8 leaves these to the new word. So 0.8/0.4 suits words of like shape, as cat and dog
# above. Where the shape changes, self-attention needs a shorter window or none.
#
# ## Why the n-th map alone is not enough
# With the n-th map alone nothing holds the house: its own map is free, and the house may move. A second reason is possible. CLIP's
# text encoder is causal: the tokens after the new word have read it (lesson 2), and might draw it with their own maps. To test
# this, we mix token vectors of both prompts and edit no map. Each row says which tokens come from the prompt with the dog.

# %%
if detect:
    rows = mixed_embeddings(sd, detect, PROMPTS, (OLD, NEW), chosen.seeds, STEPS, GUIDANCE)
    table(f"tokens from the prompt with {NEW!r}, {seeds[0]} to {seeds[-1]}", [f"{NEW}, no {OLD}"], rows)

# %% [markdown]
# On the toy the dog is drawn by its own token alone, so only the first reason counts here. The toy's tokens are trained not to copy
# "dog" (lesson 2). Stable Diffusion's are not, and there the tokens after a word may draw it as well.
#
# ## Why the same noise?
# Here the target starts from the noise of another seed and takes the source's maps, with the windows 0.8/0.4. The last picture is the
# ordinary edit, in which noise and source are both of the first seed.

# %%
apart = torch.cat([sd.init_latents(SEED), sd.init_latents(chosen.seeds[-1])])
other = sd.generate(PROMPTS, latents=apart, steps=STEPS, guidance=GUIDANCE, edit=swap).images[1]
pictures = {f"{seeds[-1]}, no control": runs[-1].images[1], f"{seeds[-1]}, {seeds[0]}'s maps": other}
pictures[f"{seeds[0]}, its own maps"] = runs[0].images[2]
show(grid([[sources[0], *pictures.values()]], (), ["source", *pictures], WORDS), chosen, "04_other_noise")
table("the target's noise and maps", ["layout"], {name: [layout(sources[0], picture)] for name, picture in pictures.items()})

# %% [markdown]
# The maps carry the layout over to other noise. But noise decides much of a layout by itself: maps of the first step are already much like
# the final ones (lesson 2). This noise asks for another layout than these maps, and the picture gets blotches. From the source's own noise
# the edit is clean and keeps more of the layout.
#
# ## Exercises
# 1. Put a castle in the cat's place: SHAPE = "castle". Which windows does it need? Why does the cat's place not suit it?
# 2. Give the new word a shorter window: Swap(..., cross_replace_steps={"default_": 0.8, NEW: 0.3}). Is the dog more of a dog?

# %%
show(minip2p.explore(sd, edited, swap), chosen, "05_explore")
finish()
