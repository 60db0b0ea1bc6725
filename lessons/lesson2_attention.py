"""Lesson 2: which pixels attend to which word

You will compute one cross-attention map by hand from Q, K and V, and find it again in the library. Then you look at the map of
every word, at each step and size, and at tokens that are no words. About 20 seconds on two CPU cores.

    make lesson2            # with other settings: make lesson2 SEED=7 STEPS=50 SEEDS=8
"""

# %%
import torch
import torch.nn.functional as F

import minip2p
from lessons.common import finish, load, settings, show, table
from minip2p.figures import curves, maps_by_size, maps_by_step, overlays, word_maps
from minip2p.unet import timestep_embedding

chosen = settings("lesson2")
sd = load(chosen)
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
PROMPT, NOUN, OTHER = "a red house next to a tree in the snow", "house", "tree"
RUN = {"steps": STEPS, "guidance": GUIDANCE}
CAPTION = f"{PROMPT!r}, seed {SEED}, {STEPS} steps, guidance {GUIDANCE}"

# %% [markdown]
# ## Where each word is attended to
# Inside the UNet the picture is a *feature map*, here of 16 x 16 pixels or fewer. In a *cross-attention* layer every pixel of it
# chooses among the tokens of the prompt, and its shares of attention sum to one. All pixels' shares for one token make a picture:
# the token's map. Its pixels are drawn as *cells*: bright cells attend to the word most. (The map of "red" is dim, because the toy's
# training asks for little attention to a colour.)

# %%
result = sd.generate(PROMPT, seed=SEED, record="all", **RUN)
show(word_maps([("", result, 0)]), chosen, "01_words")
show(overlays(result, [NOUN, OTHER]), chosen, "02_overlays")

# %% [markdown]
# ## By hand
# A layer has three matrices. Each pixel's features give a query, each token's vector gives a key and a value:
#
#     Q = W_q x,   K = W_k text,   V = W_v text
#     M = softmax(Q K^T / sqrt(d))        pixels x tokens: the map that an edit changes
#     output = M V                        each pixel receives a mixture of values, in the proportions of M
#
# M has one column per token: that token's map. A layer does this several times side by side, in *heads* of d channels each. The code
# computes the UNet's first cross-attention layer at the first step. Before it come a residual block and self-attention, in which the
# pixels attend to one another: the code up to `attention =` only repeats these.

# %%
unet, t = sd.unet, sd.schedule.timesteps(STEPS)[0]
name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
with torch.no_grad():
    text, z = sd.encode_text(PROMPT), result.trajectory[0].to(sd.dtype)
    time = timestep_embedding(t, unet.config.block_out_channels[0], z)
    time = unet.time_embedding.linear_2(F.silu(unet.time_embedding.linear_1(time)))
    x = unet.down_blocks[0].resnets[0](unet.conv_in(z), time)
    transformer = unet.down_blocks[0].attentions[0]
    block, pixels = transformer.transformer_blocks[0], transformer.to_pixels(x)
    h = block.norm1(pixels)
    pixels = pixels + block.attn1(h, h, block.attn1.site(*x.shape[-2:]))
    attention = block.attn2
    Q = attention.split_heads(attention.to_q(block.norm2(pixels)))  # (1, heads, pixels, d)
    K, V = attention.split_heads(attention.to_k(text)), attention.split_heads(attention.to_v(text))  # (1, heads, tokens, d)
    M = (Q @ K.transpose(-1, -2) / Q.shape[-1] ** 0.5).softmax(-1)  # (1, heads, pixels, tokens)
    output = M @ V  # (1, heads, pixels, d)
library = next(maps for site, maps in result.maps.by_site.items() if site.name == name)[0, 0]  # first step, mean over heads
print(f"shapes: Q {tuple(Q.shape)}, K {tuple(K.shape)}, M {tuple(M.shape)}, output {tuple(output.shape)}")
print(f"each pixel's shares sum to one: largest deviation {(M.sum(-1) - 1).abs().max():.1e}")
print(f"by hand and by library: largest difference of a share {(M.mean(1)[0] - library).abs().max():.1e} (maps are kept in float16)")

# %% [markdown]
# ## Why does the map of "house" show the house?
# Nobody labels pixels when Stable Diffusion is trained. The loss asks for the noise, and the noise is easier to predict with the
# word's value V at the right pixels. A pixel that will be house lowers the loss if it takes the value of "house". Training
# therefore adjusts W_q and W_k until that pixel's query matches the key of "house".
#
# Our toy has seen far fewer pictures than Stable Diffusion, and learned this only weakly by itself. Its training therefore has a second
# loss, *grounding*, which teaches the pixels of an object to attend to its word (weights/README.md). The picture below was made without
# that loss, by an earlier toy (commit ffa0ae1, not in a shallow clone) with `python -m minip2p attend PROMPT -o FILE`. Mind the scales:
# this one ends near a tenth, that of the first figure near nine tenths. (In part because that toy reads 77 tokens and this one 32: those
# that only fill up take most of the attention.) "house" is bright on the tree as well, and "tree" is as bright on the house as on the tree.
#
# ![maps of the toy that was trained without grounding](../images/ungrounded.png)
#
# ## Not only words
# The text encoder always reads the same number of tokens, its *context* (32 in the toy, 77 in Stable Diffusion), and each has a
# map: the start token, the end token and the padding after it, too. Shares must sum to one, so a pixel that needs no word has to
# attend to something: these tokens receive the rest. (Here no word names the sky, and its pixels attend to "a" and the start token.)
# The table averages over steps, pixels and the layers of 16 x 16. Figures and local blend read these layers, too. An edit of word
# maps changes every cross-attention layer.

# %%
SEEDS = f"seeds {chosen.seeds[0]} to {chosen.seeds[-1]}"
SURVEY = f"{PROMPT!r}, {SEEDS}, {STEPS} steps, guidance {GUIDANCE}"
runs = [sd.generate(PROMPT, seed=seed, record=True, **RUN) for seed in chosen.seeds]
words, end = sd.tokenizer.words(PROMPT), 1 + sum(len(positions) for _, positions in sd.tokenizer.words(PROMPT))
tokens = torch.stack([run.maps.tokens().mean((0, 1, 2)) for run in runs]).mean(0)  # (T,)
rows = {f"{positions[0]}: {word}": [f"{100 * tokens[positions].sum():.1f} %"] for word, positions in words}
rows |= {"all words": [f"{100 * tokens[1:end].sum():.1f} %"], "start token": [f"{100 * tokens[0]:.1f} %"]}
rows |= {"end token": [f"{100 * tokens[end]:.1f} %"], "padding": [f"{100 * tokens[end + 1 :].sum():.1f} %"]}
table(f"share of attention, {SEEDS}", ["share"], rows)

# %% [markdown]
# ## Step by step, size by size
# The same word at several steps, and at each size of the feature map. Maps of 8 x 8 show the region, maps of 16 x 16 the outline.
# The toy's second loss teaches these two sizes only. In the layer of 4 x 4 almost every pixel attends to "tree", wherever it lies: such
# a map says nothing about places.

# %%
show(maps_by_step(result, [NOUN, OTHER]), chosen, "03_steps")
show(maps_by_size(result, [NOUN, OTHER]), chosen, "04_sizes")

# %% [markdown]
# ## The layout settles early
# How early? The curve is the correlation of a word's map at each step with the mean of its maps over the last fifth of the
# steps, averaged over seeds. At 1 the map is final. It is about nine tenths at the first step already (mind the axis), and after a fifth
# of the steps both words' maps are at 0.97 or above.

# %%
lines = {}
for word in (NOUN, OTHER):
    maps = torch.stack([run.maps.word(word).flatten(1) for run in runs])  # (seeds, steps, pixels)
    final = maps[:, -max(1, STEPS // 5) :].mean(1, keepdim=True)
    a, b = maps - maps.mean(-1, keepdim=True), final - final.mean(-1, keepdim=True)
    lines[word] = F.cosine_similarity(a, b, dim=-1).mean(0).tolist()
show(curves(range(1, STEPS + 1), lines, "step", "correlation with the final map", SURVEY), chosen, "05_settling")
quarters = [round(q * STEPS) - 1 for q in (0.2, 0.4, 0.6, 0.8)]
columns, rows = [f"step {i + 1}" for i in quarters], {word: [line[i] for i in quarters] for word, line in lines.items()}
table("correlation with the final map", columns, rows)

# %% [markdown]
# ## A token has read the tokens before it
# The map of token n may also depend on earlier words. CLIP's text encoder is causal: a token attends to itself and to earlier
# tokens, never to later ones. Change one word, and compare each token's embedding with what it was.

# %%
LONGER = f"on a cloudy day, {PROMPT}"
changes = {"red -> blue": ("red", "blue"), "house -> car": ("house", "car"), "cloudy -> snowy": ("cloudy", "snowy")}
before, *after = sd.encode_text([LONGER, *(LONGER.replace(*change) for change in changes.values())])
difference = torch.stack([(text - before).norm(dim=-1) / before.norm(dim=-1) for text in after], 1)  # (tokens, changes)
rows = {f"{positions[0]}: {word}": difference[positions].mean(0).tolist() for word, positions in sd.tokenizer.words(LONGER)}
rows |= {"end, padding": difference[1 + len(sd.tokenizer.encode(LONGER).ids) :].mean(0).tolist()}
table(f"relative change of the embeddings, {LONGER!r}", list(changes), rows)

# %% [markdown]
# Tokens before the changed word stay exactly as they are. We say that a token has *read* a word if its embedding changes with the
# word. "house" has read "red", as it must: otherwise the model could not know which thing is red. All other tokens have hardly read
# anything. Here the toy differs from Stable Diffusion: its training has a third loss, against copying a word into later tokens
# (weights/README.md). Lessons 3 and 5 show what this is for.
#
# ## Exercises
# 1. Which word has the largest share? Replace "tree" by another noun and look again: does the share follow the area?
# 2. Print `result.maps.word("red house")`. Is the map of a phrase the sum of the maps of its words?
# 3. Generate with another seed. If an object is missing from a picture, what does its map look like?

# %%
show(minip2p.explore(sd, result), chosen, "06_explore")
finish()
