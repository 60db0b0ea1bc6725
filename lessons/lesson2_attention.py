"""Cross-attention: one layer by hand, a map for every word, when the maps settle, and what a token knows.

You will see queries, keys and values computed from the weights and compared with what the model's own seam reports; maps by
word, by step and by layer; where most of the attention goes; how early the layout is there; and what is drawn when one
token's vector, or only the tokens after it, are exchanged. Half a minute on two CPU cores.

    make lesson2            or, with other settings:            make lesson2 SEED=7 STEPS=20
"""

# %% Settings
import torch
import torch.nn.functional as F

from lessons.common import changed, judged, load, save, settings, spent
from minip2p import plots
from minip2p.ddim import ddim_step, predict_clean
from minip2p.maps import nearest
from minip2p.unet import time_features

chosen = settings("lesson2")
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
SEEDS = range(SEED, SEED + chosen.seeds)
PROMPT = "a tree next to a house in the snow"
WORDS = ["tree", "house", "snow"]
sd = load(chosen)


def caption(what: str) -> str:
    return f"{PROMPT!r}: {what}\nseed {SEED}, {STEPS} steps, guidance {GUIDANCE}"


# %% Pictures to look into
# All seeds in one call, and every cross-attention map of every step is kept.
starts, many = torch.cat([sd.noise(seed) for seed in SEEDS]), len(SEEDS)
result = sd.generate([PROMPT] * many, steps=STEPS, guidance=GUIDANCE, latents=starts, record=True)
picture, maps = result.images[0], result.maps

# %% On the way to the first cross-attention layer
# The first picture gets as much noise as a latent has at the middle step, and is taken through the UNet's layers one by one,
# up to the point where pixels look at the words for the first time.
unet, text = sd.unet, sd.encode_text(PROMPT).detach()
t, a = sd.schedule.timesteps(STEPS)[STEPS // 2], sd.schedule.alphas(STEPS)[STEPS // 2]
z = (a**0.5 * result.latents[:1] + (1 - a) ** 0.5 * sd.noise(SEED + 1000)).to(sd.dtype)
transformer = unet.down_blocks[0].attentions[0]
(block,) = transformer.transformer_blocks
with torch.no_grad():
    # the noise level as a vector, a residual block, then (1, C, h, w) -> (1, P, C): some checkpoints project before
    # flattening, some after
    time = time_features(t, unet.config.block_out_channels[0], z)
    time = unet.time_embedding.linear_2(F.silu(unet.time_embedding.linear_1(time)))
    x = unet.down_blocks[0].resnets[0](unet.conv_in(z), time)
    height, width = x.shape[-2:]
    x = transformer.norm(x)
    x = transformer.proj_in(x.flatten(2).mT) if transformer.linear else transformer.proj_in(x).flatten(2).mT
    h = block.norm1(x)
    x = x + block.attn1(h, h, block.attn1.site(height, width))  # pixels have looked at pixels
    hidden = block.norm2(x)  # (1, P, C): what attn2 is given

# %% Q, K, V, softmax, output
# Each pixel asks (Q, from the noisy picture), each token answers (K, from the text). How well they fit decides, by a softmax
# over the tokens, how much of each token's value (V, from the text too) the pixel takes. Several heads do so side by side.
attn = block.attn2
with torch.no_grad():
    q, k, v = (x.float() @ w.weight.T.float() for x, w in ((hidden[0], attn.to_q), (text[0], attn.to_k), (text[0], attn.to_v)))
    by_hand, taken = [], []
    for Q, K, V in zip(*(matrix.chunk(attn.heads, dim=-1) for matrix in (q, k, v))):  # (P, d), (T, d), (T, d)
        M = (Q @ K.T / Q.shape[-1] ** 0.5).exp()
        M = M / M.sum(-1, keepdim=True)  # the softmax
        by_hand.append(M)
        taken.append(M @ V)
    out_by_hand = torch.cat(taken, dim=-1) @ attn.to_out[0].weight.T.float() + attn.to_out[0].bias.float()

# %% What the model's own seam reports
# minip2p/attention.py has one line between the softmax and the values, `maps = edit(maps, site)`: the seam. An edit is any
# function from maps to maps; `site` says of which layer they are. This one changes nothing and takes notes.
seen = {}


def note(maps, site):
    if site.kind == "cross":
        seen[site] = maps
    return maps


with torch.no_grad():
    unet(z, t, text, edit=note)
    out = attn(hidden, text, attn.site(height, width))[0]
reported = seen[attn.site(height, width)][0]  # (H, P, T)
difference = max(
    float((ours - theirs).abs().max() / theirs.abs().max())
    for ours, theirs in [(torch.stack(by_hand), reported), (out_by_hand, out.float())]
)
print(f"{attn.name}: Q {tuple(q.shape)}, K and V {tuple(k.shape)}, {attn.heads} heads, maps {tuple(reported.shape)}")
print(f"by hand and by library: largest relative difference of maps and output {difference:.1e}")
off = max(float((maps.sum(-1) - 1).abs().max()) for maps in seen.values())
print(f"rows sum to one: largest deviation in {len(seen)} layers, {off:.0e}")

# %% A map for every word
# One column of a map, over all pixels, is a little picture of how much each pixel looks at one token. The library's recording
# averages it over heads, over the layers nearest to 16 x 16, and in these figures over the steps. Two things to look for:
# does a word get more than 1 / 77 = 1.3 %, what looking at all tokens alike would give it? And how much does the map of one
# thing also light the other thing? (A pixel is a cell of the layer's picture here, one of 16 x 16 or fewer.) On the toy,
# nouns light both things nearly alike at 16 x 16; its 8 x 8 layers tell them apart much better (04_layers).
where = plots.layers_of(result)
save(plots.word_maps([("the picture", picture, maps, 0)], caption(where)), chosen, "01_words")
save(plots.overlays(picture, maps, caption(where), words=WORDS), chosen, "02_overlays")
save(plots.word_steps(picture, maps, caption("one word's map, step by step"), words=WORDS), chosen, "03_steps")
save(plots.layer_maps(picture, maps, "house", caption("'house' at every layer, mean over the steps")), chosen, "04_layers")

# %% Who gets the attention
# The context has a fixed number of tokens, whatever the prompt's length, and every one of them has a map. If all were looked
# at alike, each would get one part of that number: the first line. What differs from it is what a
# layer has learned. The layers stand in the order in which they run.
length = sd.tokenizer.context
end = 1 + max(position for _, positions in sd.tokenizer.words(PROMPT) for position in positions)
parts = {"start": slice(0, 1), "words": slice(1, end), "end": slice(end, end + 1), "padding": slice(end + 1, length)}
print(f"\nshares of the attention, {PROMPT!r}, mean over pixels, steps and seeds {SEEDS[0]} to {SEEDS[-1]}")
print(f"{'':22}" + "".join(f"{name:>10}" for name in parts))
print(f"{'all tokens alike':22}" + "".join(f"{len(range(length)[part]) / length:>10.1%}" for part in parts.values()))
for site, shares in maps.by_site.items():
    mean = shares.float().mean((0, 1, 2))  # (T,)
    name = f"{site.place} {site.height} x {site.width}"
    print(f"{name:22}" + "".join(f"{mean[part].sum():>10.1%}" for part in parts.values()))


# %% What a token knows
# The text encoder is causal: a token's vector is made from the tokens before it and itself. Change a late word, and nothing
# before it can move. Change an early one, and every vector after it does, those of the end and the padding included. A word
# that has heard of the tree may also look where the tree is: the last column correlates its map with that of "tree".
def correlation(a, b):
    """Over the last dimension."""
    return F.cosine_similarity(a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True), dim=-1)


OTHER = PROMPT.replace("tree", "boat")  # an early word
LATE = PROMPT.replace("snow", "grass")  # a late one
early, late = ((sd.encode_text(prompt).detach() - text)[0].norm(dim=-1) / text[0].norm(dim=-1) for prompt in (OTHER, LATE))
(NTH,) = sd.tokenizer.positions(PROMPT, "tree")
columns = torch.stack([maps.tokens(i).mean(0).flatten(0, 1).T for i in range(many)])  # (seeds, T, P)
alike = correlation(columns, columns[:, [NTH]]).mean(0)
names = ["(start)"] + [word for word, positions in sd.tokenizer.words(PROMPT) for _ in positions] + ["(end)", "(padding)"]
print(f"\n{'how far a vector moves':24}{'tree -> boat':>14}{'snow -> grass':>15}{'map like that of tree':>24}")
for position, name in [*enumerate(names), (length - 1, "(last padding)")]:
    print(f"{position:>3} {name:20}{float(early[position]):>14.1%}{float(late[position]):>15.1%}{float(alike[position]):>24.2f}")
for word, moves in {"tree": early, "snow": late}.items():
    (n,) = sd.tokenizer.positions(PROMPT, word)
    print(f"{word}: largest move before it {moves[:n].max():.0e}, least move from it on {moves[n:].min():.1e}")

# %% Which vector draws the tree?
# A token's vector gives it its key and its value. n is the place of "tree", but what is said there lies in later vectors too.
# So exchange some vectors for those of the prompt with the boat: only the n-th, only the words after it (they have merely
# heard of a boat), only end and padding. These last get most of the attention (the first table); the fourth column of figure
# 05 shows whether they also decide. A picture may show both things, so a judge that has learned the toy's things looks for
# each (weights/toyworld/judge.py).
index = torch.arange(length, device=sd.device)[:, None]
source, target = text[0], sd.encode_text(OTHER).detach()[0]
mixes = {
    "the prompt": source,
    "only the\nn-th token": torch.where(index == NTH, target, source),
    "only the\nlater words": torch.where((index > NTH) & (index < end), target, source),
    "only end\nand padding": torch.where(index >= end, target, source),
    "all: boat": target,
}


@torch.no_grad()
def draw(texts, z):
    """The latents of several text embeddings from one noise, and at each step what the first is believed to become."""
    no_text, alphas, beliefs = sd.encode_text("").expand(len(texts), -1, -1), sd.schedule.alphas(STEPS), []
    z, texts = z.expand(len(texts), -1, -1, -1), torch.cat([no_text, texts])
    for i, t in enumerate(sd.schedule.timesteps(STEPS)):
        noise = sd.guided_noise(z, t, texts, GUIDANCE, None, alphas[i])
        beliefs.append(predict_clean(z, noise, alphas[i])[0])
        z = ddim_step(z, noise, alphas[i], alphas[i + 1])
    return z, torch.stack(beliefs)


drawn, beliefs = zip(*(draw(torch.stack(list(mixes.values())), start[None]) for start in starts))
rows = [sd.decode_latents(latents) for latents in drawn]
heads = [f"seed {seed}" for seed in SEEDS]
figure = plots.sweep(rows, heads, list(mixes), f"{PROMPT!r} with vectors of {OTHER!r}\n{STEPS} steps, guidance {GUIDANCE}")
save(figure, chosen, "05_tokens")

print(f"\n{'vectors with the boat':24}{'a boat seen':>13}{'a tree seen':>13}{'pixels changed':>16}")
for i, name in enumerate(mixes):
    seen = [judged(row[i]) for row in rows]
    boats, trees = (sum(verdict.find(noun) is not None for verdict in seen) / many for noun in ("boat", "tree"))
    other = sum(changed(row[0], row[i]) for row in rows) / many
    print(f"{name.replace(chr(10), ' '):24}{boats:>13.0%}{trees:>13.0%}{other:>16.0%}")

# %% How early do the maps settle
# Call the mean map of the second half of the steps settled. For each step: how well does its map correlate with that?
#   "2nd half": what the steps of the second half reach themselves; no single step's map equals a mean.
#   "other seed": what they reach with another seed's settled map, which any two pictures of a prompt have in common.
# The step named is the first that has come 90 % of the way from the second number to the first ("-" where the two are too close
# to tell, or one seed gives no second number). The belief about the picture (lesson 1) is measured in the same way.
HALF = STEPS // 2


def settling(tracks):
    """tracks (seeds, steps, pixels) -> a step's correlation with the settled track, (steps,), and the floor (one seed: None)."""
    settled = tracks[:, HALF:].mean(1, keepdim=True)
    floor = correlation(tracks[:, HALF:], settled.roll(1, 0)).mean() if len(tracks) > 1 else None
    return correlation(tracks, settled).mean(0), floor


tracks = {word: torch.stack([maps.word(word, prompt=i).flatten(1) for i in range(many)]) for word in WORDS}
tracks["the belief"] = torch.stack([belief.flatten(1) for belief in beliefs])
side = nearest(list(maps.by_site))[0]
curves = {}
print(f"\nhow early: seeds {SEEDS[0]} to {SEEDS[-1]}, {STEPS} steps, maps of {side.height} x {side.width}")
print(f"{'':12}{'step 1':>9}{'2nd half':>10}{'other seed':>12}{'90 % of the way at step':>27}{'a there':>9}")
for name, track in tracks.items():
    curves[name], floor = settling(track)
    plateau = curves[name][HALF:].mean()
    line = f"{name:12}{curves[name][0]:>9.2f}{plateau:>10.2f}"
    if floor is None or plateau - floor < 0.1:  # nothing to compare with, or a map that hardly depends on the seed
        print(f"{line}{'-' if floor is None else f'{floor:.2f}':>12}{'-':>27}{'-':>9}")
        continue
    step = int((curves[name] >= floor + 0.9 * (plateau - floor)).nonzero()[0])
    print(f"{line}{floor:>12.2f}{f'{step + 1} of {STEPS}':>27}{sd.schedule.alphas(STEPS)[step]:>9.3f}")
figure = plots.curve(
    range(1, STEPS + 1), {name: values.tolist() for name, values in curves.items()}, "step",
    "correlation with the\nmean of the second half",
    f"{PROMPT!r}: words' maps, and the belief of lesson 1\n{many} seeds from {SEED}, {STEPS} steps, guidance {GUIDANCE}",
)  # fmt: skip
save(figure, chosen, "06_settling")
spent()

# %% Exercises
# 1. Let `note` return maps * 1.1 for the first layer only (by site.name), keep the old `seen` beside the new one, and print by
#    how much each layer's maps changed. Which did, and do their rows still sum to one?
# 2. Exchange only the vector of the second "a" for that of the boat's prompt, as `mixes` does for other tokens. How far does it
#    move in the table, and what of the boat is drawn?
# 3. Lesson 3 gives a new prompt the old one's maps for the first part of the steps. From the last table, guess how long that
#    must last for the boat to stand where the tree stood; then set SOURCE, OLD and NEW in lesson 3 and look at its windows.
