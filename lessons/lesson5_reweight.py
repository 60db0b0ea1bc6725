"""Re-weight a word: darker nights and fewer stars, from attention rows that no longer sum to one.

You will see a slider on one word of a prompt, from -4 to 8; what it does to the rows of the attention maps, and the same
slider with rows made whole again; four words measured over several seeds; a word on which the slider does little, and
where its meaning is hidden; and weights on top of a swap. Under a minute on two CPU cores.

    make lesson5            or, with other settings:            make lesson5 SEED=7 STEPS=20
"""

# %% Settings
from dataclasses import replace

import torch

import minip2p
from lessons.common import as_array, darkness, greyness, load, save, settings, spent
from minip2p import plots
from weights.scorecard.measures import grey_in_the_sky, specks_in_the_sky

chosen = settings("lesson5")
SEED, STEPS, GUIDANCE = chosen.seed, chosen.steps, 7.5
CROSS, SELF = 0.8, 0.4
SCENE = "a house next to a tree on the grass"
NIGHT = f"{SCENE} at night"
SLIDER = [-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0]
sd = load(chosen)


def caption(what: str, steps: int = STEPS) -> str:
    return f"{what}\nseed {SEED}, {steps} steps, guidance {GUIDANCE}"


# %% Re-weighting by hand
# Source and target have the same prompt. The target gets the source's maps, and in them one column, the word's, is
# multiplied. The softmax is over by then: nothing is taken from the other words to pay for it.
(AT,) = sd.tokenizer.positions(NIGHT, "night")
BY_HAND = 4.0


class Weighted:
    """An edit of one's own: `at` says what happens to the maps (2, heads, pixels, tokens) of one step, the source's first."""

    def at(self, step, steps):
        def edit(maps, site):
            source, target = maps.chunk(2)
            if site.kind == "cross" and step < int(CROSS * steps):
                weights = torch.ones(maps.shape[-1], device=maps.device)
                weights[AT] = BY_HAND
                target = source * weights
            if site.kind == "self" and step < int(SELF * steps) and site.height * site.width <= 16 * 16:
                target = source
            return torch.cat([source, target])

        return edit


by_hand = sd.generate([NIGHT, NIGHT], seed=SEED, steps=STEPS, guidance=GUIDANCE, edit=Weighted())

# %% The same with the library, and six other weights beside it
# Reweight(sd.tokenizer, prompts, {"night": 4.0}) is the edit above. It gives a word the same weight in every target; a
# slider wants another in each, so here its table of weights, (targets, tokens), is filled row by row.


def slider(prompt: str, word: str, weights: list[float]) -> minip2p.Edit:
    """The prompt as its own source, and once as a target for each weight."""
    edit = minip2p.Reweight(sd.tokenizer, [prompt] * (1 + len(weights)), {word: 1.0})
    table = edit.weights.clone()
    table[:, sd.tokenizer.positions(prompt, word)] = torch.tensor(weights)[:, None]
    return replace(edit, weights=table)


def run(edit, prompts, seed: int = SEED, steps: int = STEPS, **options) -> minip2p.Result:
    return sd.generate(prompts, seed=seed, steps=steps, guidance=GUIDANCE, edit=edit, **options)


others = [weight for weight in SLIDER if weight != 1]  # at weight 1 the target is the source
night = slider(NIGHT, "night", others)
result = run(night, night.prompts, record=True)


def in_order(pictures: list) -> list:
    """The source, which is weight 1, between the targets."""
    return [pictures[0 if weight == 1 else 1 + others.index(weight)] for weight in SLIDER]


library = result.latents[1 + others.index(BY_HAND)]
difference = (by_hand.latents[1] - library).abs().max() / library.abs().max()
print(f"by hand and by library: largest relative difference of the latents {difference:.1e}")

# %% Rows that no longer sum to one
# A row of a map holds one pixel's shares, and they sum to one. If the word has share p of a row, that row now sums to
# 1 + (w - 1) p, so the mean of the sums must be what the last column says. What comes out, the shares times the values V, is
# then no average of the values any more but shorter, longer, or (w < 0) with the word's value taken off. No such vector
# occurred in training: nothing says what it means.
window = range(int(CROSS * STEPS))
print(f"\nsums of rows, weight of 'night', over pixels, layers and the {len(window)} steps of the window (heads averaged)")
print(f"{'weight':>8}{'mean':>8}{'least':>8}{'most':>8}   1 + (w - 1) x mean share")
layers = result.maps.by_site.values()  # each (steps, prompts, pixels, tokens)
share = torch.cat([maps[: len(window), 0, :, AT].float().flatten() for maps in layers]).mean()
for weight, prompt in zip(SLIDER, in_order(list(range(len(night.prompts))))):
    rows = torch.cat([maps[: len(window), prompt].float().sum(-1).flatten() for maps in layers])
    if len(rows):
        print(f"{weight:>8g}{rows.mean():>8.3f}{rows.min():>8.3f}{rows.max():>8.3f}   {1 + (weight - 1) * share:.3f}")

# %% Made whole again: a weight is a logit
# Divide each row by its sum and it is a softmax again, that of logits x with log w added at the word, because
#     exp(x + log w) = w exp(x),   so   softmax(x + log w) = w p / sum(w p),   with p = softmax(x).
# So w = 2 adds 0.69 to a logit, and no logit belongs to w < 0. w = 0 adds minus infinity: no pixel looks at this token. Yet
# at 0 it is still night; where that may come from is seen below: later tokens have read the word, the padding too.


class Whole:
    """Another edit, and then every row divided by its sum."""

    def __init__(self, edit: minip2p.Edit):
        self.edit = edit.to(sd.device)

    def at(self, step, steps):
        inner = self.edit.at(step, steps)

        def edit(maps, site):
            maps = inner(maps, site)
            return maps / maps.sum(-1, keepdim=True) if site.kind == "cross" else maps

        edit.wants = inner.wants  # says which maps the edit needs; without it all are written down, which is only slower
        return edit


positive = [weight for weight in others if weight >= 0]
whole = run(Whole(slider(NIGHT, "night", positive)), [NIGHT] * (1 + len(positive))).images
made_whole = dict(zip([1.0, *positive], whole))
dark = [float(darkness(as_array(picture))) for picture in (whole[0], result.images[-1], whole[-1])]
print(f"darkness of 'night' x 8: {dark[1]:.2f} as published, {dark[2]:.2f} with rows made whole (x 1: {dark[0]:.2f})")
figure = plots.sweep(
    [in_order(result.images), [made_whole.get(weight) for weight in SLIDER]],
    ["as published", "rows made\nwhole again"],
    [f"night × {weight:g}" for weight in SLIDER],
    caption(f"{NIGHT!r}. Below: as with log w added before the softmax (none for w < 0)"),
)
save(figure, chosen, "01_slider")

# %% Four words, measured
# What each word should bring, as a number from a picture of shape (height, width, 3) with values from 0 to 1. To compare
# pictures with each other, a quarter of the steps, to save time.
FEW = max(1, STEPS // 4)

WORDS = {
    "night": (NIGHT, darkness),
    "cloudy": (f"{SCENE}, cloudy", grey_in_the_sky),
    "starry": (f"{SCENE} on a starry night", specks_in_the_sky),
    "pencil sketch": (f"a pencil sketch of {SCENE}", greyness),
}
strips, measured = {}, {}
for word, (prompt, measure) in WORDS.items():
    edit = slider(prompt, word, others)
    table = []
    for seed in range(SEED, SEED + chosen.seeds):
        pictures = in_order(run(edit, edit.prompts, seed, FEW).images)
        strips.setdefault(word, pictures)
        table.append([float(measure(as_array(picture))) for picture in pictures])
    measured[word] = torch.tensor(table).mean(0)

titles = [f"× {weight:g}" for weight in SLIDER]
figure = plots.sweep(list(strips.values()), list(strips), titles, caption(f"{SCENE!r} and one more phrase", FEW))
save(figure, chosen, "02_words")

# %% Why weight 0 does not take a word away
# The text encoder is causal: every later token has read "blue" and carries some of it, so the column of "blue" is only a part
# of its meaning. Where does the colour come from? Give the model a text encoder that says "blue" in one place and "red" in
# the other: in the word's own token, or in all tokens behind it, the padding included. (Lesson 2 finds a noun mostly in its
# own token. Is a colour there, too? One prompt and one seed.) The last two pictures are for scale: one has no colour in its
# prompt, the other red.
HOUSE, BLUE, RED = (f"a {colour}house on the grass" for colour in ("", "blue ", "red "))
blue, red = (int(sd.tokenizer([colour])[0, 1]) for colour in ("blue", "red"))


def encoder(blue_in_its_token: bool):
    """A text encoder for which "blue" is blue in its own token and red in the later ones, or the other way round."""

    def encode(tokens):
        as_blue, as_red = sd.text_encoder(tokens), sd.text_encoder(torch.where(tokens == blue, red, tokens))
        return torch.where((tokens.to(sd.device) == blue)[..., None] == blue_in_its_token, as_blue, as_red)

    return encode


colour = slider(BLUE, "blue", [-2.0, 0.0, 4.0])
told = run(colour, colour.prompts, steps=FEW)
mixed = [replace(sd, text_encoder=encoder(own)).generate(BLUE, seed=SEED, steps=FEW, guidance=GUIDANCE) for own in (True, False)]
pictures = [*told.images[1:3], told.images[0], told.images[3], *(one.images[0] for one in mixed)]
names = ["blue × -2", "blue × 0", "blue × 1", "blue × 4", "blue, later\ntokens red", "red, later\ntokens blue"]
for said, name in ((HOUSE, "for scale:\na house"), (RED, "for scale:\na red house")):
    pictures.append(run(None, [said], steps=FEW).images[0])
    names.append(name)
print(f"\n{BLUE!r}, seed {SEED}, {FEW} steps: where is the colour?\n{'':40}{'reddish pixels':>16}{'bluish pixels':>16}")
for name, picture in zip(names, map(as_array, pictures)):
    below = picture[len(picture) // 3 :]  # the sky is blue anyway
    reddish, bluish = (
        (below[..., i] - below[..., [j for j in range(3) if j != i]].amax(-1) > 0.2).float().mean() for i in (0, 2)
    )
    print(f"    {' '.join(name.split()):36}{reddish:>16.0%}{bluish:>16.0%}")
save(plots.pictures([pictures], [names], caption(f"{BLUE!r}", FEW)), chosen, "03_copies")

# %% Two words at once, and weights on top of a swap
BOTH = f"{SCENE} on a starry night"
two = minip2p.Reweight(sd.tokenizer, [BOTH, BOTH], {"starry": -2.0, "night": 4.0})
two_words = run(two, [BOTH, BOTH])
SWAPPED = [NIGHT, NIGHT.replace("house", "castle")]
swap = minip2p.Swap(sd.tokenizer, SWAPPED)
swapped = run(swap, SWAPPED)
darker = run(minip2p.Reweight(sd.tokenizer, SWAPPED, {"night": 8.0}, base=swap), SWAPPED)
figure = plots.pictures(
    [[*two_words.images, *swapped.images, darker.images[1]]],
    [["... on a starry night", "starry × -2,\nnight × 4", "... at night", "a castle ...", "a castle ...,\nnight × 8"]],
    caption(f"{SCENE!r} and a phrase; at the right a swap, alone and with a weight"),
)  # fmt: skip
save(figure, chosen, "04_together")

# %% Measured, not picked
# Does more weight mean more of it, and how much more? Rises: every weight gave more than the one before it, by however
# little, by the mean over the seeds. Between 0 and 2 the night hardly changes. A style need not behave like the words of
# amount: compare "pencil sketch" at weight 8 with the others, in figure 02 too.
seeds = f"seeds {SEED} to {SEED + chosen.seeds - 1}, {FEW} steps"
print(f"\n{SCENE!r} and one more phrase, {seeds}")
print(f"{'word: measure':32}" + "".join(f"{title:>7}" for title in titles) + f"{'rises -4 to 2':>16}{'to 8':>6}")
lines = {}
for (word, values), (_, measure) in zip(measured.items(), WORDS.values()):
    rises = ["yes" if (part.diff() > 0).all() else "no" for part in (values[: 1 + SLIDER.index(2)], values)]
    name = f"{word}: {measure.__name__.replace('_', ' ')}"
    print(f"{name:32}" + "".join(f"{value:>7.3f}" for value in values) + f"{rises[0]:>16}{rises[1]:>6}")
    lines[name] = (values - values[SLIDER.index(1)]).tolist()
figure = plots.curve(SLIDER, lines, "weight", "measure, less that at weight 1", f"{SCENE!r} and one more phrase; {seeds}")
save(figure, chosen, "05_curves")
spent()

# %% Exercises
# 1. Weight "at night" instead of "night", then all tokens from "night" to the end of the padding: table[:, AT:]. How do
#    the sums of the rows change, and what becomes of the picture? (Print the table, then look. Its last column is made from AT alone:
#    sum the shares over the same tokens.)
# 2. What is at fault at weight 8, the word or the long rows? Run Whole for "pencil sketch" with 0, 2, 4 and 8 and compare
#    the greyness of both sliders.
# 3. Give Reweight cross_replace_steps=1.0, then 0.4: at which steps does the weight of "night" make it dark?
