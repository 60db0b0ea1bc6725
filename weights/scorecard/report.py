"""The scorecard's tables, for people."""

from collections.abc import Sequence

from minip2p.ddim import Schedule
from weights.scorecard.bench import GUIDANCE, LESS_GUIDANCE
from weights.scorecard.edits import CROSS, GRADED, LESS, RIVALS, SELF, WEIGHT_WINDOWS, WEIGHTS
from weights.scorecard.summary import ALIKE, KEPT, MOST, NIGHT, STYLE, SWAP, Share
from weights.toyworld.judge import NEAR, SHOWN

SAID = {"noun": "each noun found", "nouns": "exactly these things", "colour": "colour, of those found", "place": "place",
        "time": "day or night", "style": "style", "weather": "weather that is named", "no weather": "no other weather"}  # fmt: skip
SAID_OF_DRAWN = SAID | {"weather": "weather that is there", "weather that shows": "weather that shows", "amounts": "amounts"}
LEVELS = 4  # so many of the noise levels are in the table; the figure has them all


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
    return f"""# Scorecard of the toy
{quick}
Written by `make scorecard`: fixed prompts and seeds, {summary["steps"]} steps, guidance {GUIDANCE:g} if nothing else is said. A judge says
what is in a picture: `weights/toyworld/judge.py`, a small detector that was trained on drawn pictures alone. A share of 90 % of
200 is known to within 4 points. The numbers are of the last run; what the text says about them is about the shipped weights.

## In short

{short(summary)}
![Windows, weights and noise levels]({picture})

## Is the prompt obeyed?

Captions of scenes that no training saw.

{obeyed(summary)}
Found least often, at guidance {GUIDANCE:g}: {", ".join(f"{noun} {percent(value)}" for noun, value in list(summary["by noun"].items())[:4])}.
Exactly the two things asked for, by relation: {", ".join(f"{name} {percent(value)}" for name, value in summary["by relation"].items())}.
What the {sum(summary["wrong pairs"].values())} wrong pairs of two different nouns show: {", ".join(f"{name} {count}" for name, count in summary["wrong pairs"].items())}.

## Does the judge see what is there?

Drawn pictures that no training saw, whose truth is known: as they are, and after the toy's VAE, which is how its pictures look at best.

{judged(summary["judge"])}
*Weather that shows* leaves out weather of which fewer than {SHOWN} pixels can be seen, behind a house, say; *amounts* are how dark, cloudy,
snowy, flowery and starry a picture is, right if they are within {NEAR:g} of the truth (1 is the most that the drawn world has).
Aim: 98 % of each; it is not meant for weather that nothing shows, nor for amounts. The judge was not compared with people.

## Do maps point at their things?

Drawn pictures, whose masks are known, with noise of ten levels. A hit: the strongest cell of the noun's map is one that its thing
covers by at least half (if it covers no cell by half, the one that it covers most). *Mean map*: the ten maps are averaged first, so
that it does better than most of them. At the noisiest levels, where the layout is decided, the maps point worst.

{pointing(summary["pointing"])}
## Does an edit do what it should, and nothing else?

Cross-attention window {CROSS:g}, self-attention window {SELF:g}.

- *Reached*: after a swap the judge finds the new noun and no longer the old one; the thing has the added colour; the picture is a
  child's drawing, or at night.
- *Overlap*: intersection over union of a thing's box before and after, 0 if it is not found; the mean over both things.
- *PSNR outside*: between the pictures before and after, outside the edited thing's two boxes, where both were found.
- *Both*: reached, and each of the two things' boxes overlaps by more than {KEPT:g}. A box may move by a third of its width and still do.

Counted are pictures whose source shows the things of its prompt and not the target already; for style and night, *reached* is counted
in all that do not show the target already.

{edits(summary["edits"])}
*n-th map* is the naive idea. For a swap: only the swapped word's map is the source's, and self-attention is left alone (so it lacks two
things; lesson 3 takes them one by one). For an addition: the n-th token takes the source's n-th map, whatever word that was. For words
put in front this is worse than no control, since every later word gets another word's map. "at night" comes last, where the n-th
token is the same word in both prompts, and nothing goes wrong. Style and night change the whole picture: they have no outside, and
nothing to blend; there the other methods were tried in the first {RIVALS} trials, and so was colour.

{limit(summary)}

## More and less of a word

The mean amount at each weight, over prompts with one thing, cross-attention window {WEIGHT_WINDOWS[0]:g} and self-attention window {WEIGHT_WINDOWS[1]:g}. From the pixels:
darkness (1 - brightness), specks (the share of pixels in the upper third that are clearly brighter than those around them: stars),
grey (the share of pixels in the upper third with next to no colour), redness (red above green and blue in the thing's box). The
others are the judge's amounts, which say little beyond 1, the most that it has learned.

{weights(summary["reweight"])}
*Rises*: each mean is above the one before, and at least {MOST:.0%} of the pictures have more of it at 4 than at -2; *clearly*: by more than two
standard errors of the difference. "red" is the honest failure: it stands before its noun, and a causal encoder copies what it says
into all tokens behind it, whose weight stays 1 (lesson 5 shows it). "flowers" is last, and the padding behind it has read it too;
that this is why it hardly moves is a guess.

At least {LESS:.0%} less of the word at weight -2 than at 1, by method (*n-th map*: the word's own map is multiplied and nothing is kept of
the source), and the overlap of the thing's boxes:

{less(summary["reweight"])}"""


def met(value: float | None, aim: float) -> str:
    return "reached" if value is not None and value >= aim else "not reached"


def short(summary: dict) -> str:
    """Every aim, and whether it is reached."""
    one, two = summary["obeyed with less"].values()
    swaps, alike, style, night = (summary["edits"][kind] for kind in (SWAP, ALIKE, STYLE, NIGHT))
    without, edit = (of(swaps, method, "both") for method in ("no control", "edit"))
    at_5 = f", at guidance {LESS_GUIDANCE:g}"
    aimed = [  # what, its share, the same without control, aim
        (f"a thing alone is found{at_5}", one["noun"], None, 0.97),
        (f"of two things exactly these are found{at_5}", two["nouns"], None, 0.90),
        *((f"{what}{at_5}, of one thing or two: the worse", min(one[what], two[what], key=lambda value: value[0] or 0), None, aim)
          for what, aim in (("colour", 0.90), ("place", 0.97), ("style", 0.97))),
        ("a noun's mean 16 x 16 map has its strongest cell in the thing", summary["pointing"]["16"]["mean"], None, 0.95),
        ("a noun of two swapped: reached", of(swaps, "edit", "reached"), of(swaps, "no control", "reached"), None),
        (f"the other thing's box overlaps by more than {KEPT:g}", *(summary["other thing kept"].get(m, (None, 0)) for m in ("edit", "no control")), None),
        ("reached, and both things' boxes overlap so far", edit, without, 0.90),
        ("the same, where the two nouns are drawn in like sizes", of(alike, "edit", "both"), of(alike, "no control", "both"), 0.90),
        ('"a child\'s drawing of" added: reached', of(style, "edit", "reached"), of(style, "no control", "reached"), 0.97),
        ('"at night" added: reached', of(night, "edit", "reached"), of(night, "no control", "reached"), 0.97),
    ]  # fmt: skip
    body = [[what, percent(value), percent(other) if other else "", f"{aim:.0%}: {met(value[0], aim)}" if aim else ""]
            for what, value, other, aim in aimed]  # fmt: skip
    times = edit[0] / without[0] if edit[0] and without[0] else None
    body.insert(9, ["this, divided by the same without control", number((times, 0), digits=1), "", f"3: {met(times, 3)}"])
    vae, seconds = summary["vae"], summary["seconds of an edit"]
    body.append(["PSNR of unseen pictures after the VAE", f"{number(vae, ' dB', 1)} over {vae[1]}", "", f"32 dB: {met(vae[0], 32)}"])
    body.append(["an edit of two prompts, 50 steps", f"{seconds:.1f} s on {summary['cores']} CPU cores", "", f"5 s on two: {met(-seconds, -5)}"])
    return rows(["", "the toy", "without control", "aim"], body)


def of(methods: dict, name: str, what: str) -> Share:
    """One cell of the edits' table; nothing if no trial of them counted."""
    return methods[name][what] if name in methods else (None, 0)


def obeyed(summary: dict) -> str:
    columns = [*summary["obeyed"].values(), *summary["obeyed with less"].values()]
    body = [[said, *(percent(column[what]) for column in columns)] for what, said in SAID.items()]
    return rows(["the judge finds", *(f"{things}, guidance {g:g}" for g in (GUIDANCE, LESS_GUIDANCE) for things in ("one thing", "two things"))], body)


def judged(judge: dict) -> str:
    body = [[said, *(percent(row[what]) for row in judge.values())] for what, said in SAID_OF_DRAWN.items()]
    return rows(["the judge is right about", *(f"unseen pictures, {name}" for name in judge)], body)


def timesteps(sides: dict) -> list[int]:
    """The noise levels at which maps were looked at."""
    return Schedule().timesteps(len(next(iter(sides.values()))["levels"]))


def pointing(sides: dict) -> str:
    step = (len(timesteps(sides)) - 1) // (LEVELS - 1)
    body = [[f"{side} x {side}", percent(value["mean"]), percent(value["chance"], False), *(f"{level:.0%}" for level in value["levels"][::step])]
            for side, value in sides.items()]  # fmt: skip
    return rows(["maps", "mean map", "chance", *(f"t = {t}" for t in timesteps(sides)[::step])], body)


def edits(kinds: dict) -> str:
    body = []
    for kind, methods in kinds.items():
        for name, value in methods.items():
            said = kind if name == next(iter(methods)) else ""
            body.append([said, name, percent(value["reached"]), number(value["overlap"]), number(value["psnr"], " dB", 1), percent(value["both"])])
    return rows(["edit", "method", "reached", "overlap", "PSNR outside", "both"], body)


def limit(summary: dict) -> str:
    """What keeps a swap's *both* low, in numbers."""
    kept, drawn = ({which: percent(value) for which, value in summary[of].items()} for of in ("swapped thing kept", "drawn anew"))
    return f"""What keeps a swap's *both* low is the swapped thing: a bicycle does not fill the box of a tree. Its box overlaps by more than {KEPT:g} in
{kept["any"]}, and in {kept["alike"]} of those of nouns of like size (whose boxes, of middle size, overlap by more than {KEPT:g}). How high could
this be? If the drawn world itself puts the new thing in the old one's place, in a size that is usual for it, the boxes overlap that far in
{drawn["any"]} and {drawn["alike"]}. More than that means that the edit holds the size of what was there: an aim of 90 % asks for more
than a right drawing would give."""


def weights(words: dict) -> str:
    head = ["word", "measured", *(f"{weight:g}" for weight in WEIGHTS), "rises", "clearly", "more at 4 than at -2"]
    body = [[word, GRADED[word][1], *(number((mean, 1), digits=3) for mean in value["means"]), "yes" if value["rises"] else "no",
             f"{value['clear']} of {len(WEIGHTS) - 1} steps", percent(value["more at the end"])] for word, value in words.items()]  # fmt: skip
    return rows(head, body)


def less(words: dict) -> str:
    names = list(next((value["at -2"] for value in words.values() if value["at -2"]), {}))
    body = [[word, *(percent(value["at -2"][name]["reached"]) for name in names), *(number(value["at -2"][name]["overlap"]) for name in names)]
            for word, value in words.items() if value["at -2"]]  # fmt: skip
    return rows(["word", *names, *(f"overlap, {name}" for name in names)], body)
