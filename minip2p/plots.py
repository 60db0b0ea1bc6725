"""Figures of pictures and attention maps: functions from results to a matplotlib Figure (of edits: edit_tables.py and
edit_plots.py).

Every map of a figure has the same scale, which starts at zero: a word that gets little attention looks dark. The title of
a map is its word and the share of all attention it gets, averaged over the picture; a word's tokens are added up.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minip2p.attention import Site
from minip2p.errors import PromptError
from minip2p.maps import Maps, nearest
from minip2p.panels import DPI, FONT, INK, Cell, fit, sheet, some
from minip2p.pipeline import Result

COLUMNS = 7  # panels beside each other, where a row may go on in the next line


# ---------------------------------------------------------------- pictures


def pictures(rows: Sequence[Sequence[Image.Image | None]], titles: Sequence[Sequence[str]], caption: str) -> Figure:
    """A table of pictures, each with a title above it; None leaves a place empty."""
    return sheet(
        [[cell_of(*pair) for pair in zip(row, names, strict=True)] for row, names in zip(rows, titles, strict=True)], caption
    )


def film_strip(frames: Sequence[Image.Image], titles: Sequence[str], caption: str, columns: int = 8) -> Figure:
    """Pictures in the order of time, such as what the model believes the picture is at each step; it goes on line by line."""
    cells = [Cell(title, frame) for frame, title in zip(frames, titles, strict=True)]
    return sheet([cells[i : i + columns] for i in range(0, len(cells), columns)], caption)


def sweep(rows: Sequence[Sequence[Image.Image | None]], names: Sequence[str], titles: Sequence[str], caption: str) -> Figure:
    """A table of pictures: one setting changes down the rows (names), another across the columns (titles)."""
    heads = [titles] + [[""] * len(titles)] * (len(rows) - 1)
    grid = [[cell_of(*pair) for pair in zip(row, head, strict=True)] for row, head in zip(rows, heads)]
    return sheet(grid, caption, [fit(name, 1.2) for name in names])


def cell_of(picture: Image.Image | None, title: str) -> Cell | None:
    return Cell(title, picture) if picture else None


# ---------------------------------------------------------------- maps


def word_maps(rows: Sequence[tuple[str, Image.Image, Maps, int]], caption: str) -> Figure:
    """For each (title, picture, maps, prompt number): the picture, then each word's map averaged over the steps.

    The start token and the end with its padding stand last, in grey; where they exceed the words' scale they are cut off.
    """
    tables = [word_cells(maps, prompt) for _, _, maps, prompt in rows]
    columns = min(COLUMNS, 1 + max(len(table) + 2 for table in tables))
    grid = []
    for (title, picture, maps, prompt), table in zip(rows, tables):
        grid += block(Cell(title, picture), table, columns, special_cells(maps, prompt))
    return sheet(grid, caption)


def overlays(picture: Image.Image, maps: Maps, caption: str, prompt: int = 0, words: Sequence[str] | None = None) -> Figure:
    """The picture, then words' maps laid over it, smooth; `words` None means all words of the prompt in order."""
    cells = word_cells(maps, prompt, words, picture)
    return sheet(block(Cell("picture", picture), check_words(cells, maps, prompt), min(COLUMNS, 1 + len(cells))), caption)


def word_steps(
    picture: Image.Image, maps: Maps, caption: str, prompt: int = 0,
    words: Sequence[str] | None = None, steps: Sequence[int] | None = None,
) -> Figure:  # fmt: skip
    """Words down, steps across (numbers from 0; None: seven of them): how a word's map comes about.

    Each row begins with the word's mean map over the picture.
    """
    tokens = maps.tokens(prompt)  # (steps, h, w, T)
    steps = some(len(tokens), COLUMNS) if steps is None else steps
    grid = []
    for whole, (_, positions) in zip(word_cells(maps, prompt, words, picture), chosen(maps, prompt, words)):
        shares = [tokens[step][..., positions].sum(-1) for step in steps]
        heads = [f"step {step + 1}\n" if not grid else "" for step in steps]
        grid.append([whole, *(Cell(f"{head}{share.mean():.1%}", share=share) for head, share in zip(heads, shares))])
    return sheet(check_words(grid, maps, prompt), caption)


def layer_maps(picture: Image.Image, maps: Maps, word: str, caption: str, prompt: int = 0) -> Figure:
    """A word's map, averaged over the steps, at every cross-attention layer: the sizes down, the layers across in the
    order they run, on the way down, in the middle and on the way up again."""
    positions = maps.tokenizer.positions(maps.prompts[prompt], word)
    sizes = sorted({(site.height, site.width) for site in maps.by_site}, reverse=True)
    groups = {}  # (size, place) -> cells
    for site in maps.by_site:
        share = site_tokens(maps, site, prompt)[..., positions].sum(-1)
        cells = groups.setdefault((site.height, site.width, site.place), [])
        cells.append(Cell(f"{site.place} {len(cells) + 1}\n{share.mean():.1%}", share=share))
    widths = {
        place: max((len(cells) for key, cells in groups.items() if key[2] == place), default=0) for place in ("down", "mid", "up")
    }
    grid = []
    for size in sizes:
        row = [Cell(f"{word!r} at\neach layer", picture)] if not grid else [None]
        for place, width in widths.items():
            cells = groups.get((*size, place), [])
            row += cells + [None] * (width - len(cells))
        grid.append(row)
    return sheet(grid, caption, [f"{height} x {width}" for height, width in sizes])


def layers_of(result: Result) -> str:
    """What the maps of a figure were averaged over, for its caption."""
    sites = nearest(list(result.maps.by_site))
    layers = f"{len(sites)} layers" if len(sites) > 1 else "layer"
    return f"mean over steps, heads and the {layers} of {sites[0].height} x {sites[0].width}"


# ---------------------------------------------------------------- from maps to panels


def word_cells(maps: Maps, prompt: int, words: Sequence[str] | None = None, over: Image.Image | None = None) -> list[Cell]:
    """A panel for each word, in the order of the prompt or as chosen; over: a picture below the maps."""
    tokens = maps.tokens(prompt).mean(0)  # (h, w, T)
    return [map_cell(word, tokens, positions, over) for word, positions in chosen(maps, prompt, words)]


def special_cells(maps: Maps, prompt: int) -> list[Cell]:
    """The start token, and the end token with all the padding behind it."""
    tokens = maps.tokens(prompt).mean(0)
    end = 1 + sum(len(positions) for _, positions in chosen(maps, prompt, None))
    places = {"(start)": [0], "(end, padding)": list(range(end, tokens.shape[-1]))}
    return [map_cell(name, tokens, positions, apart=True) for name, positions in places.items()]


def map_cell(name: str, tokens: Tensor, positions: Sequence[int], over: Image.Image | None = None, apart: bool = False) -> Cell:
    """tokens (h, w, T) -> the panel of the sum over some of its tokens."""
    share = tokens[..., positions].sum(-1)
    return Cell(f"{name}\n{share.mean():.1%}", over, share, apart)


def chosen(maps: Maps, prompt: int, words: Sequence[str] | None) -> list[tuple[str, list[int]]]:
    """(word, token positions) of chosen words or phrases, or of every word in order."""
    if words is None:
        return maps.tokenizer.words(maps.prompts[prompt])
    return [(word, maps.tokenizer.positions(maps.prompts[prompt], word)) for word in words]


def check_words(panels: list, maps: Maps, prompt: int) -> list:
    """The panels of a prompt's words; PromptError if it has none."""
    if not panels:
        raise PromptError(f"there is no word in the prompt {maps.prompts[prompt]!r}: choose one that has some")
    return panels


def site_tokens(maps: Maps, site: Site, prompt: int) -> Tensor:
    """(h, w, T): every token's map at one layer, averaged over the steps."""
    return maps.by_site[site][:, prompt].float().mean(0).unflatten(0, (site.height, site.width))


def block(first: Cell, cells: list[Cell], columns: int, last: Sequence[Cell] = ()) -> list[list[Cell | None]]:
    """Lines of panels: `first` at the left of the first, `cells` beside it and in the lines below, `last` at the right end."""
    room = columns - 1
    gap = -(len(cells) + len(last)) % room
    cells = [*cells, *[None] * gap, *last]
    return [[first if not i else None, *cells[i : i + room]] for i in range(0, len(cells), room)]


# ---------------------------------------------------------------- numbers


def curve(x: Sequence[float], lines: dict[str, Sequence[float]], x_label: str, y_label: str, caption: str) -> Figure:
    """Lines over a common x, named in a legend."""
    figure = Figure(figsize=(6.2, 3.1), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    for name, values in lines.items():
        axis.plot(x, values, marker="o", markersize=4, label=name)
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.supxlabel(fit(caption, 6), fontsize=FONT, color=INK, parse_math=False)
    return figure
