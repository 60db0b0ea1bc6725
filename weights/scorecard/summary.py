"""From the results of all trials to the scorecard's numbers."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import mean, stdev

from weights.scorecard.edits import CROSS_SWEEP, GRADED, SELF_SWEEP, WEIGHTS
from weights.toyworld.scene import CHILD

KEPT = 0.5  # layout is kept if every thing's boxes overlap by more than this
MOST = 0.75  # a word's amount rises if its mean does and so many pictures have more at the largest weight than at the least
SWAP, ALIKE, STYLE, NIGHT = "swap a noun in a pair", "the same, nouns of like size", f'add "{CHILD}"', 'add "at night"'
Share = tuple[float | None, int]  # a mean, and over how many


def share(values: Iterable) -> Share:
    values = [float(value) for value in values]
    return (mean(values), len(values)) if values else (None, 0)


def summarise(results: dict[str, list]) -> dict:
    obeyed, with_less = ([row for part in results[trial] for row in part] for trial in ("obeyed", "obeyed with less"))
    drawn = [row for part in results["pointing"] for row in part]
    swaps = {"any": [trial for trial in results["swap"] if trial["valid"]]}
    swaps["alike"] = [trial for trial in swaps["any"] if trial["likeness"] > KEPT]
    return {
        "obeyed": obeyed_by_things(obeyed),
        "obeyed with less": obeyed_by_things(with_less),
        "by noun": by_noun(obeyed),
        "by relation": {str(relation): share(row["right"]["nouns"][0] for row in obeyed if row["relation"] == relation)
                        for relation in ("next to", "on", "behind")},
        "wrong pairs": wrong_pairs(obeyed),
        "pointing": pointing([point for row in drawn for point in row["points"]]),
        "vae": share(row["psnr"] for row in drawn),
        "edits": {
            SWAP: methods([trial["rows"] for trial in swaps["any"]]),
            ALIKE: methods([trial["rows"] for trial in swaps["alike"]]),
            "add a colour": added(results["add"], "colour"),
            STYLE: added(results["add"], "style"),
            NIGHT: added(results["add"], "night"),
        },
        "other thing kept": kept([trial["rows"] for trial in swaps["any"]], 1),
        "swapped thing kept": {which: kept([trial["rows"] for trial in trials], 0).get("edit", share([]))
                               for which, trials in swaps.items()},
        "drawn anew": {which: share(trial["drawn"] > KEPT for trial in trials) for which, trials in swaps.items()},
        "tradeoff": tradeoff([trial["rows"] for trial in results["tradeoff"] if trial["valid"]]),
        "reweight": {word: reweighted([trial for trial in results["reweight"] if trial["word"] == word and trial["valid"]])
                     for word in GRADED},
        "judge": {name: answers([part[name] for part in results["judged"]]) for name in results["judged"][0]},
    }  # fmt: skip


def obeyed_by_things(rows: Sequence[dict]) -> dict[int, dict[str, Share]]:
    return {things: answers([row["right"] for row in rows if row["things"] == things]) for things in (1, 2)}


def answers(parts: Sequence[dict[str, list]]) -> dict[str, Share]:
    return {what: share(right for part in parts for right in part[what]) for what in parts[0]}


def by_noun(rows: Sequence[dict]) -> dict[str, Share]:
    """How often each noun is found where it was asked for, the hardest first."""
    found: dict[str, list[bool]] = {}
    for row in rows:
        seen = list(row["seen"])
        for noun in row["nouns"]:
            found.setdefault(noun, []).append(noun in seen)
            if noun in seen:
                seen.remove(noun)
    return dict(sorted(((noun, share(right)) for noun, right in found.items()), key=lambda item: item[1]))


def wrong_pairs(rows: Sequence[dict]) -> dict[str, int]:
    """Pairs of different nouns that came out wrong: what is there instead, how often?"""
    kinds = []
    for row in rows:
        asked, seen = sorted(row["nouns"]), sorted(row["seen"])
        if asked[0] == asked[-1] or asked == seen:
            continue
        there = set(asked) & set(seen)
        if len(there) == 1:
            others = "one of them twice" if set(seen) == there else "one and another thing"
            kinds.append("one of them alone" if len(seen) == 1 else others)
        else:
            kinds.append("both and more" if there else "neither")
    names = ("one of them alone", "one of them twice", "one and another thing", "both and more", "neither")
    return {name: kinds.count(name) for name in names}


def pointing(points: Sequence[dict]) -> dict[str, dict]:
    """For each map size: hits of the mean map, at each noise level, and by chance."""
    sides = sorted((key for key in points[0] if key != "noun"), key=int, reverse=True)
    return {
        side: {
            "mean": share(point[side]["mean"] for point in points),
            "chance": share(point[side]["chance"] for point in points),
            "levels": [share(level)[0] for level in zip(*(point[side]["levels"] for point in points))],
        }
        for side in sides
    }


def methods(trials: Sequence[dict[str, dict]]) -> dict[str, dict[str, Share]]:
    """For each method: target reached, mean overlap, PSNR outside, and reached with the layout kept."""
    names = dict.fromkeys(name for trial in trials for name in trial)
    table = {}
    for name in names:
        rows = [trial[name] for trial in trials if name in trial]
        table[name] = {
            "reached": share(row["reached"] for row in rows),
            "overlap": share(sum(row["overlap"]) / len(row["overlap"]) for row in rows),
            "psnr": share(row["psnr"] for row in rows if row.get("psnr") is not None),
            "both": share(row["reached"] and min(row["overlap"]) > KEPT for row in rows),
        }
    return table


def kept(trials: Sequence[dict[str, dict]], which: int) -> dict[str, Share]:
    """Of swaps, for each method: how often the swapped thing (0) or the other one (1) kept its place."""
    names = trials[0] if trials else {}
    return {name: share(trial[name]["overlap"][which] > KEPT for trial in trials) for name in names}


def added(trials: Sequence[dict], what: str) -> dict[str, dict[str, Share]]:
    """As `methods`; whether style and night are reached is counted in every picture, with or without the right things."""
    fresh = [trial for trial in trials if not trial["already"][what]]
    table = methods([trial["rows"][what] for trial in fresh if trial["valid"]])
    if what != "colour":
        for name, row in methods([trial["rows"][what] for trial in fresh]).items():
            table[name] = table.get(name, row) | {"reached": row["reached"]}
    return table


def tradeoff(trials: Sequence[dict[str, dict]]) -> dict:
    table = methods(trials)
    curves = {what: {str(own): [table[f"{cross} {own}"][what][0] for cross in CROSS_SWEEP] for own in SELF_SWEEP}
              for what in ("reached", "overlap")} if trials else {}  # fmt: skip
    return {"cross": CROSS_SWEEP, "n": len(trials), "curves": curves}


def reweighted(trials: Sequence[dict]) -> dict:
    """The mean amount at each weight: does it rise from each to the next, how often by more than two standard errors?

    more at the end: the share of pictures that have more of it at the largest weight than at the least. at -2: `methods`.
    """
    amounts = [[trial["values"][str(weight)] for trial in trials] for weight in WEIGHTS]
    means = [share(values)[0] for values in amounts]
    ends = share(a < b for a, b in zip(amounts[0], amounts[-1]))
    rises = bool(trials) and all(a < b for a, b in pairwise(means)) and ends[0] >= MOST
    steps = [[b - a for a, b in zip(*pair)] for pair in pairwise(amounts)]
    clear = sum(mean(step) > 2 * stdev(step) / len(step) ** 0.5 for step in steps) if len(trials) > 1 else 0
    return {"means": means, "rises": rises, "clear": clear, "more at the end": ends,
            "at -2": methods([trial["rows"] for trial in trials])}  # fmt: skip
