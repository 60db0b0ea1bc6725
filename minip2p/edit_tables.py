"""Tables of an edit: which map each token of the edited prompt takes, and in which steps the edit acts.

Each is a figure by itself, and a part of the page that edit_plots.py draws. target: which of the edit's prompts, 1 being
the first target. Steps are counted from 1 where people read them.
"""

from collections.abc import Sequence

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from minip2p.edits import Edit
from minip2p.panels import EDGE, FONT, INK, WIDTH, add_axes, new_figure, some, text_height, text_width
from minip2p.tokenizer import CLIPTokenizer

OWN, SOURCE = "#f1845a", "#6a2a8c"  # a token's own map, and one that comes from the source
ORIGIN = LinearSegmentedColormap.from_list("origin", [OWN, "white", SOURCE])  # from -1 to 1
BELOW = 0.5  # inches for the steps and the legend below the windows
Box = tuple[float, float, float, float]  # left, top, width, height in inches, from the figure's upper left corner


def alignment(tokenizer: CLIPTokenizer, edit: Edit, caption: str, target: int = 1) -> Figure:
    """Source tokens down, target tokens across: which map each target token takes, or (the last row) that it has its own."""
    left, above, width, height = alignment_size(tokenizer, edit, target, WIDTH)
    figure, top = new_figure(left + width + EDGE, above + height + EDGE, caption)
    draw_alignment(figure, tokenizer, edit, target, (left, top + above, width, height))
    return figure


def alignment_matrix(tokenizer: CLIPTokenizer, edit: Edit, target: int) -> Tensor:
    """(source tokens + 1, target tokens), both up to the end token: M where a map is taken, and in the last row -1 where
    the token has its own."""
    source, own = (len(token_labels(tokenizer, edit.prompts[i])) for i in (0, target))
    M, keep = edit.M[target - 1].cpu(), edit.keep[target - 1].cpu()
    return torch.cat([(M * keep)[:source, :own], keep[None, :own] - 1])


def windows(tokenizer: CLIPTokenizer, edit: Edit, steps: int, caption: str, target: int = 1) -> Figure:
    """The target's tokens down, the steps across: where and when the edit acts; below, on self-attention and by its blend."""
    left, above, height = windows_size(tokenizer, edit, steps, target)
    figure, top = new_figure(6.4, above + height + BELOW, caption)
    draw_windows(figure, tokenizer, edit, steps, target, (left, top + above, 6.3 - left, height))
    return figure


def window_raster(tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int) -> tuple[list[str], Tensor]:
    """Names, and (names, steps): 1 where the source's map is in place, -1 where a new token's own is, 0 where no edit is."""
    labels = target_labels(tokenizer, edit, target)
    keep = edit.keep[target - 1].cpu()
    raster = torch.zeros(len(labels) + 1, steps)
    for step in range(steps):
        now = edit.at(step, steps)
        if now.window is not None:
            raster[:-1, step] = (now.window[target - 1, 0, 0].cpu() * (2 * keep - 1))[: len(labels)]
        raster[-1, step] = float(now.in_self_window)
    names = [*labels, "self-attention"]
    if edit.blend:
        used = torch.tensor([[float(edit.blend.active(step, steps)) for step in range(steps)]])
        names, raster = [*names, "local blend"], torch.cat([raster, used])
    return names, raster


def alignment_size(tokenizer: CLIPTokenizer, edit: Edit, target: int, room: float) -> tuple[float, float, float, float]:
    """Inches at the left of the alignment's cells and above them, their width and height, if all may be `room` inches wide."""
    rows, columns = alignment_matrix(tokenizer, edit, target).shape
    size = label_size(rows)
    left = 0.2 + names_room([*token_labels(tokenizer, edit.prompts[0]), "its own map"], size)
    cell = min(0.25, (room - left - EDGE) / columns)
    return left, text_height("x") + names_room(target_labels(tokenizer, edit, target), size), cell * columns, cell * rows


def windows_size(tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int) -> tuple[float, float, float]:
    """Inches at the left of the windows' cells and above them, and their height."""
    names = window_raster(tokenizer, edit, steps, target)[0]
    size = label_size(len(names))
    return names_room(names, size), text_height("x"), len(names) * size * 0.022


def label_size(count: int) -> float:
    """Points for so many labels."""
    return FONT if count <= 30 else 6


def names_room(names: Sequence[str], size: float) -> float:
    """Inches that names beside or above cells take."""
    return max(text_width(name, size) for name in names) + EDGE


def draw_alignment(figure: Figure, tokenizer: CLIPTokenizer, edit: Edit, target: int, box: Box) -> None:
    """Which map each target token takes, into a box of a figure."""
    matrix = alignment_matrix(tokenizer, edit, target)
    axes = draw_cells(figure, matrix, [*token_labels(tokenizer, edit.prompts[0]), "its own map"], box)
    size = label_size(len(matrix))
    axes.set_xticks(range(matrix.shape[1]), target_labels(tokenizer, edit, target), rotation=90, fontsize=size, parse_math=False)
    axes.xaxis.tick_top()
    axes.set_title("each token of the edited prompt ...", fontsize=FONT, color=INK)
    axes.set_ylabel("... takes the map of", fontsize=FONT, color=INK)
    for row, column in (matrix[:-1] % 1).nonzero().tolist():
        axes.text(column, row, f"{matrix[row, column]:.2g}", ha="center", va="center", fontsize=size - 2, color="white")


def draw_windows(figure: Figure, tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int, box: Box) -> None:
    """When the edit acts on each token, into a box of a figure."""
    names, raster = window_raster(tokenizer, edit, steps, target)
    axes = draw_cells(figure, raster, names, box, grid=steps <= 60)
    ticks = some(steps, 6)
    axes.set_xticks(ticks, [step + 1 for step in ticks], fontsize=FONT - 1)
    axes.set_title("steps in which the edit acts", fontsize=FONT, color=INK)
    axes.axhline(len(target_labels(tokenizer, edit, target)) - 0.5, color=INK, linewidth=0.8)
    patches = [Patch(color=SOURCE, label="from the source"), Patch(color=OWN, label="a new word's own")]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 2}
    axes.legend(handles=patches if (raster < 0).any() else patches[:1], fontsize=FONT - 1, frameon=False, ncols=2, **below)


def draw_cells(figure: Figure, values: Tensor, names: Sequence[str], box: Box, grid: bool = True):
    """Cells (rows, columns) from -1, a token's own, to 1, the source's, with names at the left; returns their axes."""
    axes = add_axes(figure, *box)
    axes.imshow(values.numpy(), cmap=ORIGIN, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_yticks(range(len(names)), names, fontsize=label_size(len(names)), parse_math=False)
    if grid:
        axes.set_xticks([column - 0.5 for column in range(values.shape[1] + 1)], minor=True)
        axes.set_yticks([row - 0.5 for row in range(len(names) + 1)], minor=True)
        axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    return axes


def token_labels(tokenizer: CLIPTokenizer, prompt: str) -> list[str]:
    """A label for each token up to the end: its word, and which part of it where it has several."""
    labels = ["(start)"]
    for word, positions in tokenizer.words(prompt):
        parts = [f" {i}/{len(positions)}" for i in range(1, len(positions) + 1)] if len(positions) > 1 else [""]
        labels += [word + part for part in parts]
    return [*labels, "(end)"]


def target_labels(tokenizer: CLIPTokenizer, edit: Edit, target: int) -> list[str]:
    """The labels of a target's tokens, with their weights where these are not 1."""
    weights = edit.weights[target - 1].tolist()
    labels = token_labels(tokenizer, edit.prompts[target])
    return [label if weight == 1 else f"{label} × {weight:g}" for label, weight in zip(labels, weights)]
