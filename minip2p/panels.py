"""One look for every figure: panels in a grid, one scale for all maps of a figure, one colour bar, a caption at the foot.

A figure is as wide as a README (900 pixels) or narrower, and as tall as its content: everything has its place in inches.
(A layout engine would fit panels, whose aspect is fixed, into a given figure and leave the rest of it empty.) Nothing is
shown or saved here.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

DPI = 110
WIDTH = 8.2  # inches a figure is wide at most
CELL = 1.6  # inches a panel is wide at most
BAR = 1.05  # inches that the colour bar and its label take
GAP, EDGE = 0.06, 0.08  # inches between panels, and around the whole
FONT, LINE = 8.5, 0.15  # points, and inches from line to line
COLOURS = "magma"  # perceptually uniform, dark is little
INK, PALE = "#222222", "#777777"


@dataclass(frozen=True)
class Cell:
    """A panel: a picture, or a map (h, w) of shares as crisp cells, or both, the map laid smoothly over the picture."""

    title: str
    picture: Image.Image | None = None
    share: Tensor | None = None
    apart: bool = False  # does not count for the figure's scale: where the map exceeds it, it is cut off

    @property
    def aspect(self) -> float:
        """Height over width."""
        width, height = self.picture.size if self.picture else self.share.shape[::-1]
        return height / width


Grid = Sequence[Sequence[Cell | None]]  # rows of panels; None leaves a place empty


def sheet(grid: Grid, caption: str, names: Sequence[str] = ()) -> Figure:
    """A figure of one grid. names: one for each row, at its left."""
    width, height = grid_size(grid, names)
    figure, top = new_figure(width, height, caption)
    draw_grid(figure, top, grid, names)
    return figure


def new_figure(width: float, height: float, caption: str, head: str = "") -> tuple[Figure, float]:
    """An empty figure with room for `height` inches of content between its head and its caption; and how many inches below
    its upper edge the content begins."""
    width = max(width, 3.2)
    head, caption = fit(head, width - 0.3), fit(caption, width - 0.2)
    top, foot = EDGE + text_height(head), EDGE + text_height(caption)
    total = top + height + foot
    figure = Figure(figsize=(width, total), dpi=DPI)
    figure.supxlabel(caption, y=EDGE / total, va="bottom", fontsize=FONT, color=INK, parse_math=False)
    if head:
        figure.suptitle(head, x=0.02, y=1 - EDGE / total, ha="left", va="top", fontsize=FONT, color=INK, parse_math=False)
    return figure, top


def add_axes(figure: Figure, left: float, top: float, width: float, height: float, label: str = ""):
    """Empty axes at a place in inches from the figure's upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down), label=label)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set(color=PALE, linewidth=0.4)
    return axes


def draw_grid(figure: Figure, top: float, grid: Grid, names: Sequence[str] = ()) -> None:
    """The panels of a grid in the middle of a figure, `top` inches below its upper edge; a colour bar if there are maps."""
    panel, height, bottom_and_top = panel_width(grid, names), grid_size(grid, names)[1], scale(grid)
    edge = (figure.get_size_inches()[0] - grid_size(grid, names)[0]) / 2
    left, y, drawn = edge + names_width(names), top, None
    for row, (title, body), name in zip_longest(grid, row_heights(grid, panel), names):
        y += title
        for i, cell in enumerate(row):
            if cell:
                axes = add_axes(figure, left + i * (panel + GAP), y, panel, panel * cell.aspect)
                drawn = draw_cell(axes, cell, panel, *bottom_and_top[:2]) or drawn
        if name:
            at = (left - EDGE) / figure.get_size_inches()[0], 1 - (y + body / 2) / figure.get_size_inches()[1]
            figure.text(*at, name, fontsize=FONT, color=INK, ha="right", va="center", parse_math=False)
        y += body + 2 * GAP
    if drawn:
        left += max(map(len, grid)) * (panel + GAP) + EDGE
        long = height * (0.4 + 0.6 / len(grid)) - text_height("\n")
        bar = add_axes(figure, left, top + text_height("\n") / 2 + (height - long) / 2, 0.1, long, "<colorbar>")
        colour_bar(bar, drawn, long, bottom_and_top[2])


def draw_cell(axes, cell: Cell, panel: float, bottom: float, top: float):
    """One panel of `panel` inches; returns what was drawn of its map, if it has one."""
    look = {"fontsize": FONT, "color": PALE if cell.apart else INK, "linespacing": 1.15, "parse_math": False}
    axes.set_title(fit(cell.title, panel), pad=4, **look)
    if cell.picture:
        axes.imshow(cell.picture.convert("RGB"), interpolation="lanczos" if cell.picture.width > 128 else "nearest")
    if cell.share is None:
        return None
    look = {"cmap": COLOURS, "vmin": bottom, "vmax": top}
    if not cell.picture:
        return axes.imshow(cell.share.float().cpu().numpy(), interpolation="nearest", **look)
    share = F.interpolate(cell.share[None, None].float().cpu(), cell.picture.size[::-1], mode="bicubic")[0, 0]
    return axes.imshow(share.numpy(), alpha=(0.3 + 0.6 * share.abs() / top).clamp(0, 0.9).numpy(), **look)


def scale(grid: Grid) -> tuple[float, float, bool]:
    """Least and greatest value of all maps of a grid that count, the least at most 0; and is any map cut off above?"""
    maps = [cell for row in grid for cell in row if cell and cell.share is not None]
    counted = [cell for cell in maps if not cell.apart] or maps
    top = max((float(cell.share.max()) for cell in counted), default=0.0)
    bottom = min((float(cell.share.min()) for cell in counted), default=0.0)
    return min(bottom, 0.0), top if top > 0 else 1.0, any(float(cell.share.max()) > top for cell in maps)


def colour_bar(axes, drawn, long: float, cut_off: bool) -> None:
    """The one colour bar of a grid, `long` inches of it."""
    bar = axes.figure.colorbar(drawn, cax=axes, extend="max" if cut_off else "neither", format=PercentFormatter(1.0))
    words = "share of a pixel's attention"
    bar.set_label(words if long > text_width(words) else fit(words, 1.5), fontsize=FONT, color=INK)
    bar.solids.set_alpha(1)  # where a map lies over a picture it lets the picture through
    axes.tick_params(labelsize=FONT - 1)


# ---------------------------------------------------------------- how large, and how text fits


def grid_size(grid: Grid, names: Sequence[str] = ()) -> tuple[float, float]:
    """(width, height) in inches of a grid with its titles, names and colour bar."""
    panel = panel_width(grid, names)
    width = max(map(len, grid)) * (panel + GAP) + beside(grid, names)
    return width, sum(title + body + 2 * GAP for title, body in row_heights(grid, panel))


def row_heights(grid: Grid, panel: float) -> list[tuple[float, float]]:
    """For each row, the inches that its titles take and those that its panels take."""
    filled = [[cell for cell in row if cell] for row in grid]
    return [
        (max(text_height(fit(cell.title, panel)) for cell in row), panel * max(cell.aspect for cell in row)) for row in filled
    ]


def panel_width(grid: Grid, names: Sequence[str] = ()) -> float:
    """Inches a panel of this grid is wide."""
    return min(CELL, (WIDTH - beside(grid, names)) / max(map(len, grid)) - GAP)


def beside(grid: Grid, names: Sequence[str]) -> float:
    """Inches that the names of the rows, the colour bar and the edges take."""
    has_maps = any(cell and cell.share is not None for row in grid for cell in row)
    return names_width(names) + EDGE - GAP + (BAR if has_maps else 0)


def names_width(names: Sequence[str]) -> float:
    """Inches at the left of the panels."""
    return EDGE + (max(map(text_width, names)) + EDGE if names else 0)


def text_width(text: str, size: float = FONT) -> float:
    """About how many inches the longest line of a text takes at a font size in points."""
    return max(map(len, text.split("\n"))) * 0.6 * size / 72


def text_height(text: str) -> float:
    """Inches that a text of some lines takes, with the room that parts it from what follows; none if it is empty."""
    return LINE * (text.count("\n") + 1) + EDGE if text else 0


def fit(text: str, inches: float, size: float = FONT) -> str:
    """The text, broken into lines that are not wider than so many inches."""
    letters = max(4, int(inches / text_width("x", size)))
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def some(total: int, count: int) -> list[int]:
    """At most `count` whole numbers from 0 to total - 1, evenly apart, the first and the last among them."""
    count = min(count, total)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})
