"""The scorecard's table, for people, and its figure."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from minip2p.ddim import Schedule
from minip2p.panels import DPI, FONT, INK
from weights.scorecard.bench import GUIDANCE, LESS_GUIDANCE
from weights.scorecard.edits import CROSS, GRADED, LESS, LONGER, RIVALS, SELF, WEIGHT_WINDOWS, WEIGHTS
from weights.scorecard.summary import KEPT, MOST, Share

AIMS = {("noun", 1): 0.97, ("nouns", 2): 0.90, ("colour", 0): 0.90, ("place", 0): 0.97, ("style", 0): 0.97}
EDIT_AIMS = {
    "swap a noun in a pair": ("both", 0.90),
    "the same, nouns of like size": ("both", 0.90),
    'add "a child\'s drawing of"': ("reached", 0.97),
    'add "at night"': ("reached", 0.97),
}
SAID = {"noun": "each noun found", "nouns": "exactly these things", "colour": "colour, of those found", "place": "place",
        "time": "day or night", "style": "style", "weather": "weather that is named", "no weather": "no other weather"}  # fmt: skip


def percent(value: Share, count: bool = True) -> str:
    mean, n = value
    return "–" if mean is None else f"{mean:.1%}" + (f" of {n}" if count else "")


def number(value: Share, unit: str = "", digits: int = 2) -> str:
    return "–" if value[0] is None else f"{value[0]:.{digits}f}{unit}"


def rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown(summary: dict, picture: str) -> str:
    quick = "\n**A quick run, of far too few pictures to say anything.**\n" if summary["quick"] else ""
    others = ", ".join(f"{name} {percent(value)}" for name, value in summary["other thing kept"].items())
    return f"""# Scorecard of the toy
{quick}
Written by `make scorecard`: fixed prompts and seeds, {summary["steps"]} steps, guidance {GUIDANCE:g} if nothing else is said. A judge
(`weights/toyworld/judge.py`), a small detector that was trained on pictures that `weights/toyworld` draws, says what is in a picture. A share
of 90 % of 200 is known to within 4 points. What is said about the numbers was seen on the shipped weights.

![Windows, weights and noise levels]({picture})

## Is the prompt obeyed?

Captions of scenes held out of training. An aim counts as reached if it is at one of the two guidances.

{obeyed(summary)}
Found least often: {", ".join(f"{noun} {percent(value, False)}" for noun, value in list(summary["by noun"].items())[:4])}.
Exactly the two things asked for, by relation: {", ".join(f"{name} {percent(value)}" for name, value in summary["by relation"].items())}.
What wrong pairs of two different nouns show: {", ".join(f"{name} {percent(value, False)}" for name, value in summary["wrong pairs"].items())}.

## Do maps point at their things?

Drawn pictures, whose masks are known, with noise of ten levels: is the strongest cell of a noun's map one that its thing covers by
half (or, if it covers none so far, the one that it covers most)? Aim: 95 % at 16 x 16: {met(summary["pointing"]["16"]["mean"][0], 0.95)}. What is averaged is the share of attention, over the
ten levels: the layout is decided at the noisiest, where the maps point worst.

{pointing(summary["pointing"])}
## Does an edit do what it should, and nothing else?

Cross-attention window {CROSS:g}, self-attention {SELF:g}. *Reached*: the judge finds the new noun and no longer the old one; the colour at its
thing; the style; the night; {LESS:.0%} less of a word, or still less, at weight -2. *Overlap*: intersection over union of a thing's box before and
after the edit, 0 if it is not found, averaged over things. *PSNR outside*: between the pictures before and after, outside the
edited thing's two boxes, where both things are found. *Both*: reached, with every thing's overlap above {KEPT:g}. Counted where the source shows its prompt's things and not
the target already; style and night are counted as reached or not in every picture.

{edits(summary["edits"])}
Swaps in which the other thing, the one not swapped, overlaps by more than {KEPT:g}: {others}.
{limit(summary)}

*n-th map* is the naive idea: for a swap, the swapped word's map alone is the source's, and no self-attention; for an addition, token n takes the source's
n-th map, whatever word that was; for a weight, the word's own map is multiplied and nothing is kept of the source. A picture that
changes as a whole has no outside and nothing to blend. Without control, a weight does nothing. "at night" is said last, where the
n-th token is the same word in both prompts: there the naive idea holds all that the edit holds, and the new words too. Style and night
were tried with the other methods in the first {RIVALS} trials, colour in these alone.

## More and less of a word

Mean amount at each weight, over prompts with one thing: darkness (1 - brightness), specks (the share of pixels in the upper third
that are clearly brighter than those around them: stars) and redness (red above green and blue, in the thing's box) from the pixels,
the others as the judge estimates them, 1 for the most that the drawn world has. Cross-attention window
{WEIGHT_WINDOWS[0]:g}, self-attention {WEIGHT_WINDOWS[1]:g}. "red" is a word of another kind: it stands before its noun, and a causal encoder copies what it says into
all tokens behind it, whose weight stays 1 (lesson 5 shows it). "flowers" is last, and the padding behind it has read
it too; that this is why it hardly moves is a guess. *Rises all the
way*: each mean is above the one before, and at least {MOST:.0%} of the pictures have more of it at 4 than at -2.

{weights(summary["reweight"])}
## The instruments

{instruments(summary)}"""


def obeyed(summary: dict) -> str:
    columns = [*summary["obeyed"].values(), *summary["obeyed with less"].values()]
    body = []
    for what, said in SAID.items():
        aims = [AIMS.get((what, things)) or AIMS.get((what, 0)) for things in (1, 2)]
        aim = f"{max(filter(None, aims)):.0%}" + {"noun": " alone", "nouns": " in pairs"}.get(what, "") if any(aims) else ""
        best = [met(max(columns[j][what][0] or 0.0 for j in (i, i + 2)), aimed) for i, aimed in enumerate(aims) if aimed]
        body.append([said, *(percent(column[what]) for column in columns), aim and f"{aim}: {' and '.join(dict.fromkeys(best))}"])
    less = f"guidance {LESS_GUIDANCE:g}: "
    return rows(["the judge finds", "one thing", "two things", less + "one", less + "two", "aim"], body)


def met(value: float | None, aim: float) -> str:
    return "reached" if value is not None and value >= aim else "not reached"


def timesteps(sides: dict) -> list[int]:
    """The noise levels at which maps were looked at."""
    return Schedule().timesteps(len(next(iter(sides.values()))["levels"]))


def pointing(sides: dict) -> str:
    names = [f"t = {t}" for t in timesteps(sides)]
    body = [[f"{side} x {side}", percent(value["mean"]), percent(value["chance"], False), *(f"{level:.0%}" for level in value["levels"])]
            for side, value in sides.items()]  # fmt: skip
    return rows(["maps", "mean map", "chance", *names], body)


def edits(kinds: dict) -> str:
    body = []
    for kind, methods in kinds.items():
        aimed, aim = EDIT_AIMS.get(kind, ("", 0.0))
        for name, value in methods.items():
            reached, both = (percent(value[what]) + (f", aim {aim:.0%}: {met(value[what][0], aim)}" if (what, name) == (aimed, "edit") else "")
                             for what in ("reached", "both"))  # fmt: skip
            said = kind if name == next(iter(methods)) else ""
            body.append([said, name, reached, number(value["overlap"]), number(value["psnr"], " dB", 1), both])
    return rows(["edit", "method", "reached", "overlap", "PSNR outside", "both"], body)


def limit(summary: dict) -> str:
    """What keeps a swap's *both* low, in numbers."""
    without, edited = (summary["edits"]["swap a noun in a pair"].get(name, {"both": (None, 0)})["both"][0] for name in ("no control", "edit"))
    times = f"{edited / without:.1f} times that without control (aim: 3 times); " if edited and without else ""
    drawn = {which: percent(value) for which, value in summary["drawn anew"].items()}
    kept = {which: percent(value) for which, value in summary["swapped thing kept"].items()}
    return f"""The edit's *both* is {times}what keeps it low is the swapped thing: a bicycle does not fill the box of a tree. Its box
overlaps by more than {KEPT:g} in {kept["any"]}, and in {kept["alike"]} of those of nouns of like size (whose boxes, of middle size,
overlap by more than {KEPT:g}). In the drawn world itself, with the old and the new thing in one place and each in a size of its own, it
would be {drawn["any"]} and {drawn["alike"]}: an edit that keeps more holds the size of what was there. Control costs a little
obedience; a longer self-attention window ({LONGER:g}) keeps more of the picture and costs more of it."""


def weights(words: dict) -> str:
    head = ["word", "measured", *(f"{weight:g}" for weight in WEIGHTS), "rises all the way", "more at 4 than at -2"]
    body = [[word, GRADED[word][1], *(number((mean, 1), digits=3) for mean in value["means"]), "yes" if value["rises"] else "no",
             percent(value["more at the end"])] for word, value in words.items()]  # fmt: skip
    return rows(head, body)


def instruments(summary: dict) -> str:
    body = [[f"judge, pictures {name}", ", ".join(f"{SAID[what]} {percent(value, False)}" for what, value in row.items()),
             f"98% each: {met(min(mean for mean, _ in row.values() if mean is not None), 0.98)}"]
            for name, row in summary["judge"].items()]  # fmt: skip
    body.append(
        [
            "VAE, unseen pictures",
            f"{number(summary['vae'], ' dB', 1)} over {summary['vae'][1]}",
            f"32 dB: {met(summary['vae'][0], 32)}",
        ]
    )
    seconds = summary["seconds of an edit"]
    body.append(["an edit of two prompts, 50 steps", f"{seconds:.1f} s on {summary['cores']} CPU cores", f"5 s on two: {met(-seconds, -5)}"])
    return rows(["", "", "aim"], body)


# ---------------------------------------------------------------- the figure


def figure(summary: dict) -> Figure:
    """Four panels: target reached and layout kept over the cross window, amounts over the weight, hits over the noise."""
    page = Figure(figsize=(8.2, 6.2), dpi=DPI, layout="constrained")
    reached, kept, weighted, noisy = page.subplots(2, 2).flat
    windows = summary["tradeoff"]
    swaps = f"a noun of two swapped, {windows['n']} pictures"
    for axis, what, title in ((reached, "reached", "Target reached"), (kept, "overlap", "Layout kept: overlap of boxes")):
        for own, values in windows["curves"].get(what, {}).items():
            axis.plot(windows["cross"], values, marker="o", markersize=3, label=f"self-attention {float(own):g}")
        finish(axis, f"{title}\n({swaps})", "share of the steps with the source's word maps")
    for word, value in summary["reweight"].items():
        means = [float("nan") if mean is None else mean for mean in value["means"]]
        means = [mean / (means[WEIGHTS.index(1.0)] or float("nan")) for mean in means]
        weighted.plot(WEIGHTS, means, marker="o", markersize=3, linestyle="-" if value["rises"] else ":", label=word)
    finish(weighted, "Re-weighting: how much of the word is there, beside\nweight 1 (dotted where it does not rise all the way)", "weight")
    for side, value in summary["pointing"].items():
        (line,) = noisy.plot(timesteps(summary["pointing"]), value["levels"], marker="o", markersize=3, label=f"{side} x {side}")
        noisy.axhline(value["chance"][0], color=line.get_color(), linestyle=":", linewidth=1)
    finish(noisy, "A noun's strongest cell lies in its thing\n(dotted: chance)", "noise level t")
    for axis in (reached, kept, noisy):
        axis.set_ylim(0, 1.03)
    page.supxlabel(f"pictures of {summary['steps']} steps, guidance {GUIDANCE:g}; maps on drawn pictures", fontsize=FONT, color=INK)
    return page


def finish(axis, title: str, label: str) -> None:
    axis.set_title(title, fontsize=FONT, color=INK)
    axis.set_xlabel(label, fontsize=FONT)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=7.5, frameon=True, framealpha=0.85, edgecolor="none", ncols=2 if len(axis.get_legend_handles_labels()[0]) > 5 else 1)
