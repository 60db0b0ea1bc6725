"""One look for every figure: panels in a grid, one scale for all maps of a figure, one colour bar, a caption at the foot.

A figure is as wide as a README (900 pixels) or narrower, and as tall as it must be. Nothing is shown or saved here.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import PercentFormatter
from PIL import Image
from torch import Tensor

DPI = 110
WIDTH = 8.2  # inches a figure is wide at most
CELL = 1.6  # inches a panel is wide at most
BAR = 1.0  # inches that the colour bar and its label take
FONT, LINE = 8.5, 0.17  # points, and inches from line to line
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
    figure = new_figure(width, height, caption)
    draw_grid(figure, grid, names)
    return figure


def new_figure(width: float, height: float, caption: str, head: str = "") -> Figure:
    """An empty figure with room for `height` inches of content between its head and its caption."""
    head, caption = fit(head, width - 0.3), fit(caption, width - 0.2)
    text = LINE * (lines(head) + lines(caption))
    figure = Figure(figsize=(width, height + 0.3 + text), dpi=DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.1, wspace=0.01, hspace=0.01)
    figure.supxlabel(caption, fontsize=FONT, color=INK, parse_math=False)
    if head:
        figure.suptitle(head, fontsize=FONT, color=INK, x=0.02, ha="left", parse_math=False)
    return figure


def draw_grid(container: FigureBase, grid: Grid, names: Sequence[str] = ()) -> None:
    """The panels of a grid in a figure or a part of one, with a colour bar if there are maps."""
    panel, columns = panel_width(grid, names), max(len(row) for row in grid)
    axes = container.subplots(len(grid), columns, squeeze=False)
    bottom, top, cut_off = scale(grid)
    drawn = None
    for axis in axes.flat:
        blank(axis)
    for row, row_axes in zip(grid, axes):
        for cell, axis in zip(row, row_axes):
            drawn = draw_cell(axis, cell, panel, bottom, top) or drawn if cell else drawn
    for name, axis in zip(names, axes[:, 0]):
        axis.set_ylabel(name, fontsize=FONT, color=INK, rotation=0, ha="right", va="center", parse_math=False)
    if drawn:
        colour_bar(container, axes, drawn, cut_off)


def draw_cell(axis, cell: Cell, panel: float, bottom: float, top: float):
    """One panel of `panel` inches; returns what was drawn of its map, if it has one."""
    axis.set_title(fit(cell.title, panel), fontsize=FONT, color=PALE if cell.apart else INK, linespacing=1.15, parse_math=False)
    if cell.picture:
        axis.imshow(cell.picture, interpolation="lanczos" if cell.picture.width > 128 else "nearest")
    if cell.share is None:
        return None
    look = {"cmap": COLOURS, "vmin": bottom, "vmax": top}
    if not cell.picture:
        return axis.imshow(cell.share.float().cpu(), interpolation="nearest", **look)
    share = F.interpolate(cell.share[None, None].float().cpu(), cell.picture.size[::-1], mode="bicubic")[0, 0]
    return axis.imshow(share, alpha=(0.3 + 0.6 * share.abs() / top).clamp(0, 0.9).numpy(), **look)


def scale(grid: Grid) -> tuple[float, float, bool]:
    """Least and greatest value of all maps of a grid that count, the least at most 0; and is any map cut off above?"""
    maps = [cell for row in grid for cell in row if cell and cell.share is not None]
    counted = [cell for cell in maps if not cell.apart] or maps
    top = max((float(cell.share.max()) for cell in counted), default=0.0)
    bottom = min((float(cell.share.min()) for cell in counted), default=0.0)
    return min(bottom, 0.0), top if top > 0 else 1.0, any(float(cell.share.max()) > top for cell in maps)


def colour_bar(container: FigureBase, axes: np.ndarray, drawn, cut_off: bool) -> None:
    """The one colour bar of a grid, at its right."""
    bar = container.colorbar(
        drawn, ax=list(axes.flat), shrink=min(1.0, 0.4 + 0.6 / len(axes)), aspect=24, pad=0.01,
        extend="max" if cut_off else "neither", format=PercentFormatter(1.0),
    )  # fmt: skip
    bar.set_label("share of a pixel's attention" if len(axes) > 1 else "share of a pixel's\nattention", fontsize=FONT, color=INK)
    bar.solids.set_alpha(1)  # where a map lies over a picture it lets the picture through
    bar.ax.tick_params(labelsize=FONT - 1)


def blank(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


# ---------------------------------------------------------------- how large, and how text fits


def grid_size(grid: Grid, names: Sequence[str] = ()) -> tuple[float, float]:
    """(width, height) in inches of a grid with its titles."""
    panel, columns = panel_width(grid, names), max(len(row) for row in grid)
    aspect = max(cell.aspect for row in grid for cell in row if cell)
    titles = [max((lines(fit(cell.title, panel)) for cell in row if cell), default=0) for row in grid]
    width = columns * (panel + 0.06) + beside(grid, names)
    return max(width, 3.2), len(grid) * (panel * aspect + 0.22) + LINE * sum(titles)


def panel_width(grid: Grid, names: Sequence[str] = ()) -> float:
    """Inches a panel of this grid is wide."""
    return min(CELL, (WIDTH - beside(grid, names)) / max(len(row) for row in grid) - 0.06)


def beside(grid: Grid, names: Sequence[str]) -> float:
    """Inches that the names of the rows and the colour bar take."""
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    has_maps = any(cell and cell.share is not None for row in grid for cell in row)
    return 0.1 + 0.075 * longest + (BAR if has_maps else 0)


def fit(text: str, inches: float, size: float = FONT) -> str:
    """The text, broken into lines that are not wider than so many inches at a font size in points."""
    letters = max(4, int(inches * 72 / (0.6 * size)))
    return "\n".join(textwrap.fill(line, letters) for line in text.split("\n"))


def lines(text: str) -> int:
    return text.count("\n") + 1 if text else 0


def some(total: int, count: int) -> list[int]:
    """At most `count` whole numbers from 0 to total - 1, evenly apart, the first and the last among them."""
    count = min(count, total)
    return sorted({round(i * (total - 1) / max(1, count - 1)) for i in range(count)})
