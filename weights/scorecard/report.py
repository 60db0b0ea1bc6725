"""From the results of all trials to the scorecard's numbers and its page."""

from collections.abc import Iterable
from itertools import pairwise
from statistics import mean, median

from weights.scorecard.trials import EDIT_GUIDANCE, GRADED, GUIDANCE, LEVELS, WEIGHTS

METHODS = ("no control", "n-th map", "word maps", "Prompt-to-Prompt", "with local blend")
RISE = 1.15  # a graded word is measured 15 % higher at the largest weight than at the smallest
STARTS = (-2.0, 0.0)  # the weights from which a rise is counted; at 0 a quantity may already be as low as it can be


def average(values: Iterable) -> float:
    """The mean of the values that are not None; nan if there are none."""
    known = [float(value) for value in values if value is not None]
    return mean(known) if known else float("nan")


def summarise(results: dict[str, list]) -> dict:
    """Every number of the page, by name."""
    pictures = [row for part in results["prompt"] for row in part]
    nouns = [row for part in results["maps"] for row in part]
    swaps = [trial["rows"] for trial in results["swap"] if trial["valid"]]
    inverted = [trial["rows"] for trial in results["inversion"] if trial["valid"]]
    return {
        "counts": {"pictures": len(pictures), "nouns": len(nouns), "swaps": len(swaps), "inversions": len(inverted)},
        "prompt": {
            str(things): {
                what: average(right for row in pictures if row["things"] == things for right in row["right"][what])
                for what in ("nouns", "noun", "colour", "place", "time", "style", "weather")
            }
            for things in (1, 2)
        },
        "maps": summarise_maps(nouns),
        "swap": {
            method: {
                what: average(rows[method][what] for rows in swaps)
                for what in ("swapped", "kept", "colour", "place", "layout", "background")
            }
            for method in METHODS
        },
        "reweight": summarise_words(results["reweight"]),
        "inversion": {
            method: {what: average(rows[method][what] for rows in inverted) for what in ("source", "background")}
            for method in ("ddim", "null-text")
        },
        "truth": {
            seen: {
                what: average(right for trial in results["truth"] for right in trial[seen][what])
                for what in results["truth"][0][seen]
            }
            for seen in ("drawn", "through the VAE")
        },
    }


def summarise_maps(nouns: list[dict]) -> dict:
    """The numbers of the trial `maps`, of which each row is a noun."""
    means = {name: average(row[name] for row in nouns) for name in ("iou", "words", "blend", "covered", "chance", "vae")}
    hits = [average(row["hits"][i] for row in nouns) for i in range(len(LEVELS))]
    return {"ratio": median(row["ratio"] for row in nouns), **means, "hits": hits}


def summarise_words(trials: list[dict]) -> dict:
    """The numbers of the trial `reweight`, by word."""
    return {word: graded([t["values"] for t in trials if t["word"] == word and t["valid"]]) for word in GRADED}


def graded(trials: list[list[float]]) -> dict:
    """The mean quantity of a word at each weight, and the weights from which on it rises at every weight and by 15 % in all."""
    means = [average(values) for values in zip(*trials)]
    rises = {}
    for least in STARTS:
        above = means[WEIGHTS.index(least) :]
        rises[f"{least:g}"] = bool(above) and all(a < b for a, b in pairwise(above)) and above[-1] >= RISE * above[0]
    return {"means": means, "rises": rises, "pictures": len(trials)}


def aims(summary: dict) -> list[tuple[str, str, str, bool]]:
    """(what, measured, aim, reached) of every aim."""
    maps, swap, inversion = summary["maps"], summary["swap"], summary["inversion"]
    layouts = swap["word maps"]["layout"] / swap["Prompt-to-Prompt"]["layout"]
    gain = inversion["null-text"]["background"] - inversion["ddim"]["background"]
    rising = {start: sum(word["rises"][start] for word in summary["reweight"].values()) for start in ("-2", "0")}
    wanted = (0.80, 0.97, 0.99, 0.99)
    one, two = (summary["prompt"][things]["nouns"] for things in "12")
    return [
        ("attention to a noun inside its own object / inside the other object, median", f"{maps['ratio']:.1f}", "8", maps["ratio"] >= 8),
        ("IoU of a noun's mean 16 x 16 map, at 0.3 of its maximum, with the object", f"{maps['iou']:.2f}", "0.70", maps["iou"] >= 0.7),
        (f"strongest cell in the object at t = {' / '.join(map(str, LEVELS))}", " / ".join(f"{100 * hit:.0f}" for hit in maps["hits"]) + " %",
         " / ".join(f"{100 * aim:.0f}" for aim in wanted) + " %", all(hit >= aim for hit, aim in zip(maps["hits"], wanted))),
        ("share of attention on the prompt's words", f"{100 * maps['words']:.1f} %", "50 %", maps["words"] >= 0.5),
        ("local blend's mask for one object of two, share of the picture", f"{100 * maps['blend']:.2f} %", "at most 25 %", maps["blend"] <= 0.25),
        ("share of the object that this mask covers", f"{100 * maps['covered']:.0f} %", "90 %", maps["covered"] >= 0.9),
        ("layout of a swap with word maps alone, divided by that with self-attention too", f"{layouts:.2f}", "0.95", layouts >= 0.95),
        ("one object drawn, as the caption says", f"{100 * one:.1f} %", "98 %", one >= 0.98),
        ("exactly the two objects of the caption drawn", f"{100 * two:.1f} %", "95 %", two >= 0.95),
        *((f"graded words whose quantity rises at every weight from {start} to 4, and by 15 % in all",
           f"{count} of {len(GRADED)}", f"{len(GRADED)}", count == len(GRADED)) for start, count in rising.items()),
        ("VAE, PSNR of unseen pictures", f"{maps['vae']:.1f} dB", "32 dB", maps["vae"] >= 32),
        ("background PSNR of an edit: null-text above DDIM", f"{gain:+.1f} dB", "+3 dB", gain >= 3),
    ]  # fmt: skip


def table(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]) + "\n"


def percent(value: float) -> str:
    return "" if value != value else f"{100 * value:.1f} %"


def markdown(summary: dict) -> str:
    """The page."""
    counts, quick = summary["counts"], "\n**A quick run, of too few pictures to say anything.**\n" if summary["quick"] else ""
    reached = [[what, measured, aim, "yes" if met else "no"] for what, measured, aim, met in aims(summary)]
    prompt = [
        [what, percent(summary["prompt"]["1"][what]), percent(summary["prompt"]["2"][what])] for what in summary["prompt"]["1"]
    ]
    swap = [
        [
            method,
            *(percent(row[what]) for what in ("swapped", "kept", "colour", "place")),
            f"{row['layout']:.2f}",
            f"{row['background']:.1f} dB",
        ]
        for method, row in summary["swap"].items()
    ]
    words = [[word, *(f"{value:.3f}" for value in row["means"]), *("yes" if rises else "no" for rises in row["rises"].values()), str(row["pictures"])]
             for word, row in summary["reweight"].items()]  # fmt: skip
    inversion = [
        [method, f"{row['source']:.1f} dB", f"{row['background']:.1f} dB"] for method, row in summary["inversion"].items()
    ]
    truth = [[what, *(percent(row[what]) for row in summary["truth"].values())] for what in summary["truth"]["drawn"]]
    return f"""# Scorecard of the toy
{quick}
Written by `make scorecard`: fixed prompts and seeds that no training saw, {summary["steps"]} steps. The judge
(`weights/toyworld/judge.py`) is a small detector that was trained on drawn pictures only.

## Aims

{table(["", "measured", "aim", "reached"], reached)}
## Does the picture show what the prompt says?

{counts["pictures"]} captions, half with one object and half with two, guidance {GUIDANCE:g}. *nouns*: exactly these objects and no other; *noun*: each by itself.

{table(["the judge finds", "one object", "two objects"], prompt)}
## Do words attend to their objects?

{counts["nouns"]} nouns of unseen drawn pairs, whose masks are known, with noise of ten levels. The first six rows of the table of aims are
measured here, on cross-attention maps averaged over heads and layers of 16 x 16. By chance the strongest cell lies in the object in
{percent(summary["maps"]["chance"])}.

## Does a swap change one object and keep the other?

{counts["swaps"]} swaps of one noun of two whose source shows both nouns, guidance {EDIT_GUIDANCE:g}. *Swapped*: the new noun is found and the old one is not.
*Other object kept*: its box overlaps its old box by more than 0.5 (intersection over union); *its colour*: is the same. *In place*: the new
object's box overlaps the old object's by more than 0.5. *Layout*: the correlation of the edges with the source's. *Background*: PSNR outside the two
boxes of the swapped object, of the pictures in which the new noun is found.

*N-th map*: only the swapped word takes the source's map. *Word maps*: all words do, for 80 % of the steps. *Prompt-to-Prompt*: self-attention as
well, for 40 %. *With local blend*: the change is also kept inside the mask of the old and the new
noun.

{table(["method", "swapped", "other object kept", "its colour", "in place", "layout", "background"], swap)}
## Does a weight change the amount?

The mean quantity of each word at each weight, cross-attention window 1, self-attention window 0, guidance {GUIDANCE:g}. Quantities are measured in
pixels (`measures.py`): darkness, grey sky, bright specks, white pixels, coloured pixels of the ground, redness of the object. *Rises*: at every weight, and by
15 % or more in all. Where no other token has copied a word, a weight of 0 takes most of it away, and below 0 little is left to fall. A colour is read by
its noun, so that the object keeps it without the word.

{table(["word", *(f"{weight:g}" for weight in WEIGHTS), "rises from -2", "rises from 0", "pictures"], words)}
## Do edits work on inverted pictures?

{counts["inversions"]} unseen drawn pairs, inverted and reconstructed at guidance {GUIDANCE:g}, one noun swapped. The prompt names the two nouns and the
place alone, not night, weather, style or colours, so guidance leads further away than in lesson 9, whose captions are complete. Null-text
takes 10 updates a step at rate 0.01, as published. Background: as above.

{table(["method", "source", "background of the edit"], inversion)}
## Is the judge right?

Drawn pictures that no training saw, as they are and through the toy's VAE. *Weather that shows* leaves out weather of which fewer than 8 pixels show.

{table(["the judge is right about", "drawn", "through the VAE"], truth)}"""
