"""Figures of pictures and attention maps. Functions from results to a matplotlib Figure; nothing is shown or saved here.

Every map of a figure has the same scale, which starts at zero: a word that gets little attention looks dark.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minip2p.maps import Maps, nearest
from minip2p.pipeline import Result

CELL = 1.55  # inches a panel is wide
COLOURS = "magma"  # perceptually uniform, dark is little
INK = "#222222"


def new_figure(rows: int, columns: int, caption: str, row_inches: float = CELL + 0.42) -> tuple[Figure, np.ndarray]:
    """An empty figure of equal panels without axes, and its caption at the foot; (figure, axes (rows, columns))."""
    figure = Figure(figsize=(CELL * columns + 0.5, row_inches * rows + 0.35), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.supxlabel(caption, fontsize=8, color=INK)
    return figure, axes


def pictures(rows: Sequence[Sequence[Image.Image | None]], titles: Sequence[Sequence[str]], caption: str) -> Figure:
    """A table of pictures, each with a title above it; None leaves a place empty."""
    figure, axes = new_figure(len(rows), max(len(row) for row in rows), caption)
    for row, names, row_axes in zip(rows, titles, axes):
        for picture, name, axis in zip(row, names, row_axes):
            if picture is not None:
                show_picture(axis, picture, name)
    return figure


def show_picture(axis, picture: Image.Image, title: str) -> None:
    axis.imshow(picture, interpolation="lanczos")
    axis.set_title(title, fontsize=8.5, color=INK)


def word_maps(rows: Sequence[tuple[str, Image.Image, Maps, int]], caption: str) -> Figure:
    """One row for each (title, picture, maps, prompt number): the picture, then each word's map averaged over the steps.

    The title of a map is its word and the share of all attention it gets. A word of several tokens is their sum. The
    start token and the end with its padding stand last; where they exceed the words' scale they are cut off.
    """
    tables = [word_table(maps, prompt) for _, _, maps, prompt in rows]
    top = max(float(share.max()) for table in tables for word, share in table[:-2])
    columns = 1 + max(len(table) for table in tables)
    figure, axes = new_figure(len(rows), columns, caption)
    for (title, picture, _, _), table, row_axes in zip(rows, tables, axes):
        show_picture(row_axes[0], picture, title)
        places = list(row_axes[1 : len(table) - 1]) + list(row_axes[-2:])  # the last two stand apart, at the right
        for (word, share), axis in zip(table, places):
            drawn = axis.imshow(share, cmap=COLOURS, vmin=0, vmax=top, interpolation="nearest")
            axis.set_title(f"{word}\n{share.mean():.1%}", fontsize=8.5, color=INK)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, aspect=30, pad=0.01, extend="max")
    bar.set_label("share of a pixel's attention", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
    return figure


def word_table(maps: Maps, prompt: int) -> list[tuple[str, np.ndarray]]:
    """(word, (h, w) mean over the steps) for each word of a prompt in order; last the start token and the end tokens."""
    tokens = maps.tokens(prompt).mean(0)  # (h, w, T)
    words = maps.tokenizer.words(maps.prompts[prompt])
    table = [(word, share_of(tokens, positions)) for word, positions in words]
    end = 1 + sum(len(positions) for _, positions in words)
    return [*table, ("(start)", share_of(tokens, [0])), ("(end, padding)", share_of(tokens, list(range(end, tokens.shape[-1]))))]


def share_of(tokens: Tensor, positions: list[int]) -> np.ndarray:
    return tokens[..., positions].sum(-1).cpu().numpy()


def layers_of(result: Result) -> str:
    """What the maps of a figure were averaged over, for its caption."""
    sites = nearest(list(result.maps.by_site))
    return f"mean over steps, heads and the {len(sites)} layers of {sites[0].height} x {sites[0].width}"


def curve(x: Sequence[float], lines: dict[str, Sequence[float]], x_label: str, y_label: str, caption: str) -> Figure:
    """Lines over a common x, each named beside its end."""
    figure = Figure(figsize=(6.2, 3.1), dpi=110, layout="constrained")
    axis = figure.subplots()
    for name, values in lines.items():
        axis.plot(x, values, marker="o", markersize=4, label=name)
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, frameon=False)
    figure.supxlabel(caption, fontsize=8, color=INK)
    return figure
