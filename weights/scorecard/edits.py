"""Trials of the edits: does an edit reach its target, and what does it leave alone?"""

from random import Random

from minip2p import Add, LocalBlend, Reweight, Swap
from weights.scorecard.bench import Bench
from weights.scorecard.beside import Beside, only_nth, own_maps, unaligned
from weights.scorecard.measures import amount, judged, overlap
from weights.toyworld.judge import Found, Verdict
from weights.toyworld.scene import CHILD, COLOURS, PLACES
from weights.toyworld.things import NOUNS

RIVALS = 50  # so many trials of additions try every method, the others what the aims are about
CROSS, SELF = 0.8, 0.4  # the edits' windows, as the package has them
CROSS_SWEEP, SELF_SWEEP = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.0, 0.4, 0.8)
WEIGHTS = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
WEIGHT_WINDOWS = (1.0, 0.0)  # for re-weighting: all steps, and self-attention free, which would hold the amounts where they are
SOME = 0.002  # a picture with less of a word does not show it; of specks, three
LESS = 0.05  # less by this share of it counts as less of a word
GRADED = {  # the word that is re-weighted, how a prompt says it, what is measured
    "night": ("at night", "darkness"), "starry": ("on a starry night", "specks"), "cloudy": (", cloudy", "grey"),
    "snowy": (", snowy", "snowy"), "flowers": ("with flowers", "with flowers"), "red": ("", "redness"),
}  # fmt: skip


def pair(number: int) -> tuple[str, str, str, str]:
    """Two nouns, a third one, and a place."""
    rng = Random(f"pair {number}")
    return *rng.sample(list(NOUNS), 3), rng.choice(list(PLACES))


def swapped(number: int) -> tuple[list[str], tuple[str, str], str]:
    """Source and target prompt, the word swapped and the new one, and the other noun; the first and the second by turns."""
    old, other, new, place = pair(number)
    prompt = f"a {{}} next to a {other} {place}" if number % 2 else f"a {other} next to a {{}} {place}"
    return [prompt.format(old), prompt.format(new)], (old, new), other


def swap_row(source: Verdict, seen: Verdict, words: tuple[str, str], other: str, pictures=None) -> dict:
    """Reached: the new noun is found, the old one not."""
    old, new = words
    thing, unchanged = (source.find(old), seen.find(new)), (source.find(other), seen.find(other))
    return judged(thing, unchanged, seen.find(new) and not seen.find(old), pictures)


def standing(noun: str, height: float) -> Found:
    """A thing of this height, in pixels, with its feet at (0, 0)."""
    width = height * NOUNS[noun].aspect
    return Found(noun, 1.0, (-width / 2, -height, width / 2, 0.0), None)


def likeness(old: str, new: str) -> float:
    """The overlap of two nouns drawn in one place in their middle sizes."""
    return overlap(*(standing(noun, sum(NOUNS[noun].size) / 2) for noun in (old, new)))


def drawn_anew(number: int, old: str, new: str) -> float:
    """The overlap of two nouns drawn in one place, each in a size of its own: what a swap may be expected to keep."""
    rng = Random(f"drawn {number}")
    return overlap(*(standing(noun, rng.uniform(*NOUNS[noun].size)) for noun in (old, new)))


def both_found(source: Verdict, *nouns: str) -> bool:
    return sorted(thing.noun for thing in source.things) == sorted(nouns)


def swap(bench: Bench, number: int) -> dict:
    """One noun of two is swapped for a third."""
    prompts, words, other = swapped(number)
    edit = Swap(bench.sd.tokenizer, prompts, CROSS, SELF)
    nth = only_nth(edit, bench.sd.tokenizer.positions(prompts[1], words[1]))
    methods = {"no control": None, "n-th map": nth, "edit": edit, "local blend": edit}
    every = [prompts[0]] + [prompts[1]] * len(methods)
    blend = LocalBlend(bench.sd.tokenizer, every, [[words[0]]] + [[words[1]]] * len(methods))
    images = bench.generate(every, [number], Beside(list(methods.values()), blend, [len(methods)]))
    source, *seen = bench.judge.look(images)
    rows = {name: swap_row(source, verdict, words, other, (images[0], image))
            for name, verdict, image in zip(methods, seen, images[1:])}  # fmt: skip
    return {"prompts": prompts, "seed": number, "valid": both_found(source, words[0], other), "likeness": likeness(*words),
            "drawn": drawn_anew(number, *words), "rows": rows}  # fmt: skip


def tradeoff(bench: Bench, number: int) -> dict:
    """The same swaps with windows of every length."""
    prompts, words, other = swapped(number)
    windows = [(cross, own) for own in SELF_SWEEP for cross in CROSS_SWEEP]
    edits = [Swap(bench.sd.tokenizer, prompts, *window) for window in windows]
    source, *seen = bench.judge.look(bench.generate([prompts[0]] + [prompts[1]] * len(edits), [number], Beside(edits)))
    rows = {f"{cross} {own}": swap_row(source, verdict, words, other) for (cross, own), verdict in zip(windows, seen)}
    return {"prompts": prompts, "seed": number, "valid": both_found(source, words[0], other), "rows": rows}


def add(bench: Bench, number: int) -> dict:
    """A style, the night and a colour are added to a scene of two things; later only style and night, by the edit alone."""
    first, second, _, place = pair(1000 + number)
    colours = [c for c in COLOURS if c not in (*PLACES[place].hides, "orange")]  # "orange" would want another article
    colour = colours[number % len(colours)]
    source = f"a {first} next to a {second} {place}"
    targets = {
        "style": f"{CHILD} {source}",
        "night": f"{source} at night",
        "colour": source.replace("a ", f"a {colour} ", 1),
    }
    tries = []  # (what is added, method, edit)
    for what, target in targets.items():
        edit = Add(bench.sd.tokenizer, [source, target], CROSS, SELF)
        methods = {"no control": None, "n-th map": unaligned(edit), "edit": edit, "local blend": edit}
        wanted = methods if what == "colour" else list(methods)[:3]  # the others change the picture as a whole
        if number >= RIVALS:
            wanted = [] if what == "colour" else ["edit"]
        tries += [(what, method, methods[method]) for method in wanted]
    every = [source] + [targets[what] for what, *_ in tries]
    blended = [i for i, (_, method, _) in enumerate(tries, 1) if method == "local blend"]
    blend = LocalBlend(bench.sd.tokenizer, every, [[first]] * len(every)) if blended else None
    images = bench.generate(every, [1000 + number], Beside([edit for *_, edit in tries], blend, blended))
    before, *seen = bench.judge.look(images)

    def shows(verdict: Verdict) -> dict[str, bool]:
        thing = verdict.find(first)
        return {"style": verdict.style == CHILD, "night": verdict.night, "colour": thing is not None and thing.colour == colour}

    rows: dict[str, dict] = {what: {} for what in targets}
    for (what, method, _), after, image in zip(tries, seen, images[1:]):
        things = [(before.find(noun), after.find(noun)) for noun in (first, second)]
        rows[what][method] = judged(*things, shows(after)[what], (images[0], image) if what == "colour" else None)
    return {"prompts": every[:1] + list(targets.values()), "seed": 1000 + number, "valid": both_found(before, first, second),
            "already": shows(before), "rows": rows}  # fmt: skip


# ---------------------------------------------------------------- more and less of a word


def reweight(bench: Bench, number: int) -> dict:
    """One word of a prompt with one thing, multiplied by each of WEIGHTS; at -2 also without the source's maps, and blended."""
    word = list(GRADED)[number % len(GRADED)]
    said, what = GRADED[word]
    rng = Random(f"reweight {number}")
    noun = rng.choice([noun for noun in NOUNS if (word, noun) != ("flowers", "flower")])
    place = rng.choice([place for place in PLACES if word != "snowy" or place != "in the snow"])
    prompt = f"a red {noun} {place}" if word == "red" else f"a {noun} {place}{'' if said.startswith(',') else ' '}{said}"
    weights = [w for w in WEIGHTS if w != 1]
    edits = [Reweight(bench.sd.tokenizer, [prompt, prompt], {word: w}, None, *WEIGHT_WINDOWS) for w in weights]
    edits += [own_maps(edits[0]), edits[0]]
    every = [prompt] * (1 + len(edits))
    images = bench.generate(every, [2000 + number], Beside(edits, LocalBlend(bench.sd.tokenizer, every, word), [len(edits)]))
    seen = bench.judge.look(images)
    amounts = [amount(what, image, verdict, seen[0].find(noun)) for image, verdict in zip(images, seen)]
    kept = [overlap(seen[0].find(noun), verdict.find(noun)) for verdict in seen]
    values = dict(zip(map(str, [1.0, *weights]), amounts))
    rows = {"n-th map": -2, "edit": 1, "local blend": -1}
    return {"prompt": prompt, "seed": 2000 + number, "word": word,
            "valid": seen[0].find(noun) is not None and amounts[0] > SOME, "values": values,
            "rows": {name: {"reached": amounts[i] < (1 - LESS) * amounts[0], "overlap": [kept[i]]} for name, i in rows.items()}}  # fmt: skip
