"""Figures of attention maps: how much of each pixel's attention goes to which word.

A word's map is the sum over its tokens; a word that a caller names has the sum over all its occurrences. The share in a title
is the map's mean over the picture. All maps of a figure have one scale. `size` is (height, width) of the layers to average,
such as (8, 8); None means the low-resolution layers of the largest size, which the edits use as well.
"""

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from minip2p.attention_store import Maps
from minip2p.checks import check_prompt, word_positions
from minip2p.errors import RequestError
from minip2p.figures.checks import check_steps, maps_of
from minip2p.figures.panels import Figure, Panel, evenly, panel_figure
from minip2p.result import Result
from minip2p.tokenizer import CLIPTokenizer

COLUMNS = 8  # panels beside each other at most
Size = tuple[int, int] | None
Words = Sequence[str] | None


def word_maps(rows: Sequence[tuple[str, Result, int]], caption: str = "", words: Words = None, size: Size = None) -> Figure:
    """For each (label, result, number of the prompt): the picture, then one map per word, averaged over the steps.

    The start token, the end token and the sum of the padding stand apart, in grey, and do not set the scale. `words`: only
    these words or phrases, in each row those that its prompt has.
    """
    if not rows:
        raise RequestError("there are no rows: give at least one (label, result, number of the prompt)")
    for _, result, prompt in rows:
        check_prompt(result.prompts, prompt)
    prompts, tables = [result.prompts[prompt] for _, result, prompt in rows], []
    for _, result, prompt in rows:
        maps, text = maps_of(result), result.prompts[prompt]
        for word in words or ():
            word_positions(maps.tokenizer, prompts, word)  # PromptError if no prompt has it
        own = None if words is None else [word for word in words if maps.tokenizer.find(text, word)]
        tables.append((word_panels(maps, prompt, own, size), special_panels(maps, prompt, size) if words is None else []))
    count = max(1, *(len(cells) + len(special) for cells, special in tables))
    columns, lines = -(-count // -(-count // 10)), []  # at most 10 maps in a line, in lines of equal length
    for (label, result, prompt), (cells, special) in zip(rows, tables):
        gap = -(len(cells) + len(special)) % columns if special else 0  # puts the special tokens at the right end
        cells = [*cells, *[None] * gap, *special]
        for i in range(0, max(1, len(cells)), columns):
            lines.append([Panel(label, result.images[prompt]) if i == 0 else None, *cells[i : i + columns]])
    if len({(run.seed, run.steps, run.guidance) for _, run, _ in rows}) == 1:
        return panel_figure(lines, caption, describe(rows[0][1], prompts, size))
    facts = [f"{label}: {describe(run, [run.prompts[prompt]], size)}" for label, run, prompt in rows]
    return panel_figure(lines, caption, *facts)


def overlays(result: Result, words: Words = None, caption: str = "", prompt: int = 0, size: Size = None) -> Figure:
    """The picture, then the maps of words, smooth over the picture in grey; `words` None means every word of the prompt."""
    check_prompt(result.prompts, prompt)
    picture = result.images[prompt]
    cells = [Panel("picture", picture), *word_panels(maps_of(result), prompt, words, size, picture)]
    columns = -(-len(cells) // -(-len(cells) // COLUMNS))  # as few lines as possible, of equal length
    lines = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    return panel_figure(lines, caption, describe(result, [result.prompts[prompt]], size))


def maps_by_step(
    result: Result, words: Words = None, steps: Sequence[int] | None = None, caption: str = "", prompt: int = 0, size: Size = None
) -> Figure:
    """Words down, steps across (counted from 0; None: six of them): how a word's map forms during the run. Each row begins
    with the word's mean map over the picture."""
    tokens = maps_of(result).tokens(prompt, size)  # (steps, h, w, T)
    steps, lines = evenly(len(tokens), 6) if steps is None else steps, []
    check_steps(steps, len(tokens))
    words = chosen(result.maps, prompt, words)
    for _, positions in words:
        shares = tokens[..., positions].sum(-1)  # (steps, h, w)
        head = "" if lines else "mean of all steps"
        line = [Panel(head, result.images[prompt], shares.mean(0), note=f"{shares.mean():.1%}")]
        for step in steps:
            line.append(Panel("" if lines else f"step {step + 1}", share=shares[step], note=f"{shares[step].mean():.1%}"))
        lines.append(line)
    names = [word for word, _ in words]
    return panel_figure(lines, caption, describe(result, [result.prompts[prompt]], size), row_labels=names)


def maps_by_size(result: Result, words: Words = None, caption: str = "", prompt: int = 0) -> Figure:
    """Sizes of layers down, words across: the picture, then each word's map, averaged over the steps and the layers of a size."""
    check_prompt(result.prompts, prompt)
    maps, picture = maps_of(result), Panel("picture", result.images[prompt])
    lines = [[picture, *word_panels(maps, prompt, words, size)] for size in maps.sizes]
    names = [maps.layers(size).replace(" of ", "\nof ") for size in maps.sizes]
    return panel_figure(lines, caption, describe(result, [result.prompts[prompt]], layers="layers"), row_labels=names)


def describe(result: Result, prompts: Sequence[str] | None = None, size: Size = None, layers: str = "") -> str:
    """The facts of a figure of maps, for its caption: prompts (None: all), seed, steps, guidance, and the layers averaged."""
    names = " -> ".join(map(repr, dict.fromkeys(result.prompts if prompts is None else prompts)))
    seed = None if result.seed is None else f"seed {result.seed}"
    run = ", ".join(filter(None, (names, seed, f"{result.steps} steps, guidance {result.guidance:g}")))
    return f"{run}; maps: mean over steps, heads and {layers or maps_of(result).layers(size)}"


# ---------------------------------------------------------------- from maps to panels


def word_panels(maps: Maps, prompt: int, words: Words, size: Size, picture: Image.Image | None = None) -> list[Panel]:
    """One panel per word, in the order of the prompt or as chosen."""
    tokens = maps.tokens(prompt, size).mean(0)  # (h, w, T)
    return [map_panel(word, tokens, positions, picture) for word, positions in chosen(maps, prompt, words)]


def special_panels(maps: Maps, prompt: int, size: Size) -> list[Panel]:
    """The start token, the end token, and the sum of the padding."""
    tokens = maps.tokens(prompt, size).mean(0)
    start, *_, end = all_words(maps.tokenizer, maps.prompts[prompt])
    padding = "(padding)", list(range(end[1][0] + 1, tokens.shape[-1]))
    return [map_panel(name, tokens, positions, special=True) for name, positions in (start, end, padding) if positions]


def map_panel(name: str, tokens: Tensor, positions: list[int], picture=None, special: bool = False) -> Panel:
    """tokens (h, w, T) -> the panel of the sum over some of its tokens, titled with their share."""
    share = tokens[..., positions].sum(-1)
    return Panel(f"{name}\n{share.mean():.1%}", picture, share, special)


def chosen(maps: Maps, prompt: int, words: Words) -> list[tuple[str, list[int]]]:
    """(word, token positions) of chosen words or phrases, or of every word in order."""
    text = maps.prompts[prompt]
    return maps.tokenizer.words(text) if words is None else [(word, maps.tokenizer.positions(text, word)) for word in words]


def all_words(tokenizer: CLIPTokenizer, prompt: str) -> list[tuple[str, list[int]]]:
    """The words of a prompt with their token positions, between the start and the end token."""
    words = tokenizer.words(prompt)
    return [("(start)", [0]), *words, ("(end)", [1 + sum(len(positions) for _, positions in words)])]
