"""What all figures share: pictures and maps in rows with labels, one colour scale, a caption. The layout is matplotlib's own."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from minip2p.errors import RequestError

DPI, WIDTH, CELL = 110, 8.2, 1.5  # dots per inch; inches that a figure and a panel are wide at most
FONT, INK, MUTED = 8.5, "#222222", "#8a8a8a"
TEXT = {"fontsize": FONT, "color": INK, "parse_math": False}  # a prompt may contain a $
SMALL = TEXT | {"fontsize": FONT - 1}
COLOURS = "magma"  # perceptually uniform, dark is little


class Figure(matplotlib.figure.Figure):
    """A matplotlib figure that a notebook shows as a picture."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


@dataclass(frozen=True)
class Panel:
    """A picture, or a map drawn as crisp cells, or both: the map smooth over the picture in grey."""

    title: str = ""
    picture: Image.Image | None = None
    share: Tensor | None = None  # (h, w), the share of each pixel's attention
    special: bool = False  # start, end and padding do not set the scale: where their maps exceed it they are cut off
    note: str = ""  # below the panel


Rows = Sequence[Sequence[Panel | None]]  # None leaves a place empty


def grid(pictures, row_labels: Sequence[str] = (), column_labels: Sequence[str] = (), caption: str = "", notes=()) -> Figure:
    """Pictures in a labelled grid. `pictures`: rows of PIL pictures, None leaves a place empty. `notes`: rows of short texts,
    one below each picture, such as its PSNR. Small pictures are enlarged without smoothing."""
    columns = max(map(len, pictures), default=0)
    for name, labels, count in (("row", row_labels, len(pictures)), ("column", column_labels, columns)):
        if len(labels) not in (0, count):
            raise RequestError(f"the grid has {count} {name}s and {len(labels)} {name} labels: give one for each, or none")
    heads = [column_labels or [""] * columns] + [[""] * columns] * len(pictures)
    below = notes or [[""] * columns] * len(pictures)
    rows = [
        [Panel(head, picture, note=note) if picture else None for picture, head, note in zip(*line)]
        for line in zip(pictures, heads, below)
    ]
    return panel_figure(rows, caption, row_labels=row_labels)


def curves(x: Sequence[float], lines: dict[str, Sequence[float]], xlabel: str, ylabel: str, caption: str = "", **axis) -> Figure:
    """Curves {label: y} over a common x, with a legend. `axis`: settings of the axes, such as yscale="log" or ylim=(0, 1)."""
    figure = Figure(figsize=(6.4, 3.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for label, y in lines.items():
        axes.plot(x, y, marker="o", markersize=3.5, label=label)
    if all(isinstance(value, int) for value in x):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style_axes(axes, xlabel, ylabel)
    axes.set(**axis)
    if len(lines) > 1:
        figure.legend(loc="outside right upper", fontsize=FONT, frameon=False)
    return with_caption(figure, caption)


def style_axes(axes, xlabel: str, ylabel: str = "") -> None:
    """Labels, a light grid and no box: the look of everything that is plotted against numbers."""
    axes.set_xlabel(xlabel, **TEXT)
    axes.set_ylabel(ylabel, **TEXT)
    axes.tick_params(labelsize=FONT - 1, color=MUTED, labelcolor=INK)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)


def evenly(total: int, count: int) -> list[int]:
    """At most `count` step numbers from 0 to total - 1, evenly apart, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(count, total))})


# ---------------------------------------------------------------- panels


def panel_figure(rows: Rows, *caption: str, row_labels: Sequence[str] = ()) -> Figure:
    """A figure of rows of panels, as wide as they need and as tall as they are, with the lines of its caption."""
    if not any(panel for row in rows for panel in row):
        raise RequestError("there is nothing to draw: give at least one picture, or a prompt that has words")
    width = max(map(len, rows)) * CELL + (1.1 if any(row_labels) else 0.1)
    figure = Figure(figsize=(min(WIDTH, max(width, 3.4)), 3.0 * len(rows) + 2), dpi=DPI, layout="constrained")
    draw_panels(figure, rows, row_labels)
    return fit(with_caption(figure, *caption))


def draw_panels(part, rows: Rows, row_labels: Sequence[str] = ()) -> None:
    """Rows of panels into a figure or subfigure. All maps have one scale from zero; one colour bar if there are maps."""
    columns = max(map(len, rows))
    table = part.subplots(len(rows), columns, squeeze=False)
    letters = int(part.bbox.width / part.dpi / columns * 72 / (0.56 * FONT))  # in a line above a panel
    maps = [panel for row in rows for panel in row if panel and panel.share is not None]
    counted = [panel.share for panel in maps if not panel.special] or [panel.share for panel in maps]
    low, high = min([0.0, *(float(share.min()) for share in counted)]), max([0.0, *(float(share.max()) for share in counted)])
    drawn = None
    for axes, panel in zip(table.flat, (panel for row in rows for panel in [*row, *[None] * (columns - len(row))])):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=MUTED, linewidth=0.4, visible=panel is not None)
        axes.patch.set_visible(False)
        if panel:
            drawn = draw_panel(axes, panel, low, high or 1.0) or drawn
            axes.set_title(fold(panel.title, letters), pad=3, **TEXT | ({"color": MUTED} if panel.special else {}))
            axes.set_xlabel(fold(panel.note, letters), labelpad=3, **TEXT)
    for axes, label in zip(table[:, 0], row_labels):
        axes.set_ylabel(fold(label, 16), rotation=0, ha="right", va="center", labelpad=6, **TEXT)
    if drawn:
        width = min(1, 2.4 * part.dpi / part.bbox.width)  # 2.4 inches
        place = {"location": "bottom", "anchor": (1, 1), "shrink": width, "aspect": 24, "pad": 0.01}
        extend = "max" if any(float(panel.share.max()) > high for panel in maps) else "neither"
        bar = part.colorbar(drawn, ax=table, extend=extend, ticks=MaxNLocator(4), format=PercentFormatter(1), **place)
        bar.set_label("share of attention", labelpad=2, **TEXT)
        bar.ax.tick_params(labelsize=FONT - 1, length=2, color=MUTED)
        bar.solids.set_alpha(1)
        bar.outline.set_visible(False)


def draw_panel(axes, panel: Panel, low: float, high: float):
    """One panel; returns the image of its map, if it has one."""
    width, height = panel.picture.size if panel.picture else panel.share.shape[::-1]
    look = {"extent": (0, width, height, 0), "aspect": "auto"}  # `fit` sets the aspect
    if panel.picture:
        small = max(panel.picture.size) <= 2 * CELL * DPI
        shown = panel.picture.convert("RGB" if panel.share is None else "L").convert("RGB")
        axes.imshow(shown, interpolation="nearest" if small else "antialiased", **look)
    if panel.share is None:
        return None
    share = panel.share.float().cpu().numpy()
    look |= {"cmap": COLOURS, "vmin": low, "vmax": high, "interpolation": "bicubic" if panel.picture else "nearest"}
    return axes.imshow(share, alpha=(0.2 + 0.6 * np.abs(share) / high).clip(0, 0.8) if panel.picture else None, **look)


def fold(text: str, letters: int) -> str:
    """The text in lines of at most so many letters."""
    return "\n".join(textwrap.fill(line, max(letters, 6)) for line in text.split("\n"))


def with_caption(figure: Figure, *lines: str) -> Figure:
    """The figure with the lines of a caption below; empty ones are left out."""
    width, caption = figure.get_figwidth(), "\n".join(filter(None, lines))
    if caption:
        figure.supxlabel(fold(caption, int(width * 72 / (0.54 * FONT))), x=0.1 / width, ha="left", linespacing=1.3, **TEXT)
    return figure


def fit(figure: Figure, parts=None) -> Figure:
    """The figure, made as tall as its axes need at the width that matplotlib's layout gives them, which constrained layout
    has no way to ask for. `parts`: the GridSpec of its subfigures, one below the other."""
    figure.get_layout_engine().execute(figure)
    spare = [spare_height(part) for part in figure.subfigs or [figure]]
    if parts:
        parts.set_height_ratios([part.bbox.height / figure.dpi - less for part, less in zip(figure.subfigs, spare)])
    figure.set_size_inches(figure.get_figwidth(), figure.get_figheight() - sum(spare))
    return figure


def spare_height(part) -> float:
    """Inches of height that a figure or subfigure does not need: pictures keep their aspect, other axes have 0.22 inches for each
    unit of y. Sets the heights of its axes and rows."""
    if part.subfigs:  # side by side
        return min(map(spare_height, part.subfigs))
    heights: dict[int, float] = {}  # row -> pixels
    spare = 0.0
    for axes in part.axes:
        place, slot = axes.get_subplotspec(), axes.get_window_extent()
        if place and axes.has_data():
            left, right, bottom, top = axes.images[0].get_extent() if axes.images else (0, slot.width, *axes.get_ylim())
            height = abs((top - bottom) / (right - left)) * slot.width * (1 if axes.images else 0.22 * part.dpi)
            axes.set_box_aspect(height / slot.width)
            axes.set_anchor("N")
            row, rows = place.rowspan.start, place.get_gridspec()
            spare += 0 if row in heights else slot.height
            heights[row] = max(height, heights.get(row, 0))
            rows.set_height_ratios([heights.get(i, 1) for i in range(rows.nrows)])
    return (spare - sum(heights.values())) / part.dpi
