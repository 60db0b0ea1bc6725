"""Figures of an edit: what it takes from the source, when, what that does to the maps; and its whole story on one page.

target: which of the edit's prompts, 1 being the first target. Steps are counted from 1 where people read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from minip2p.align import places
from minip2p.edits import Edit
from minip2p.errors import PromptError
from minip2p.maps import Maps
from minip2p.panels import FONT, INK, PALE, WIDTH, Cell, Grid, draw_grid, grid_size, new_figure, sheet, some
from minip2p.pipeline import Result
from minip2p.plots import map_cell
from minip2p.tokenizer import CLIPTokenizer

OWN, SOURCE = "#f1845a", "#6a2a8c"  # a token's own map, and one that comes from the source
ORIGIN = LinearSegmentedColormap.from_list("origin", [OWN, "white", SOURCE])  # from -1 to 1


# ---------------------------------------------------------------- which tokens, and when


def alignment(tokenizer: CLIPTokenizer, edit: Edit, caption: str, target: int = 1) -> Figure:
    """Source tokens down, target tokens across: which map each target token takes, or (the last row) that it has its own."""
    rows, columns = alignment_matrix(tokenizer, edit, target).shape
    cell = min(0.3, (WIDTH - 1.6) / columns)
    longest = max(len(label) for label in target_labels(tokenizer, edit, target))
    figure = new_figure(max(4.2, cell * columns + 1.6), cell * rows + 0.08 * longest + 0.6, caption)
    draw_alignment(figure, tokenizer, edit, target)
    return figure


def alignment_matrix(tokenizer: CLIPTokenizer, edit: Edit, target: int) -> Tensor:
    """(source tokens + 1, target tokens), both up to the end token: M where a map is taken, and in the last row -1 where
    the token has its own."""
    source, own = (len(token_labels(tokenizer, edit.prompts[i])) for i in (0, target))
    M, keep = edit.M[target - 1].cpu(), edit.keep[target - 1].cpu()
    return torch.cat([(M * keep)[:source, :own], keep[None, :own] - 1])


def windows(tokenizer: CLIPTokenizer, edit: Edit, steps: int, caption: str, target: int = 1) -> Figure:
    """The target's tokens down, the steps across: where and when the edit acts; below, on self-attention and by its blend."""
    figure = new_figure(6.4, 0.19 * len(window_raster(tokenizer, edit, steps, target)[0]) + 0.9, caption)
    draw_windows(figure, tokenizer, edit, steps, target)
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


def draw_alignment(container, tokenizer: CLIPTokenizer, edit: Edit, target: int) -> None:
    matrix = alignment_matrix(tokenizer, edit, target)
    axis = draw_cells(container, matrix, [*token_labels(tokenizer, edit.prompts[0]), "its own map"])
    axis.set_aspect("equal")
    size = axis.get_yticklabels()[0].get_fontsize()
    axis.set_xticks(range(matrix.shape[1]), target_labels(tokenizer, edit, target), rotation=90, fontsize=size, parse_math=False)
    axis.xaxis.tick_top()
    axis.set_title("each token of the edited prompt ...", fontsize=FONT, color=INK)
    axis.set_ylabel("... takes the map of", fontsize=FONT, color=INK)
    for row, column in (matrix[:-1] % 1).nonzero().tolist():
        axis.text(column, row, f"{matrix[row, column]:.2g}", ha="center", va="center", fontsize=size - 1, color="white")


def draw_windows(container, tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int) -> None:
    names, raster = window_raster(tokenizer, edit, steps, target)
    axis = draw_cells(container, raster, names, grid=steps <= 60)
    axis.set_aspect("auto")
    ticks = some(steps, 6)
    axis.set_xticks(ticks, [step + 1 for step in ticks], fontsize=FONT - 1)
    axis.set_title("steps in which the edit acts", fontsize=FONT, color=INK)
    axis.axhline(len(target_labels(tokenizer, edit, target)) - 0.5, color=INK, linewidth=0.8)
    patches = [Patch(color=SOURCE, label="from the source"), Patch(color=OWN, label="a new word's own")]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 2}
    axis.legend(handles=patches if (raster < 0).any() else patches[:1], fontsize=FONT - 1, frameon=False, ncols=2, **below)


def draw_cells(container, values: Tensor, names: Sequence[str], grid: bool = True):
    """Cells (rows, columns) from -1, a token's own, to 1, the source's, with names at the left; returns their axis."""
    axis = container.subplots()
    axis.imshow(values, cmap=ORIGIN, vmin=-1, vmax=1, interpolation="nearest")
    size = FONT if len(names) <= 30 else 6
    axis.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    if grid:
        axis.set_xticks([column - 0.5 for column in range(values.shape[1] + 1)], minor=True)
        axis.set_yticks([row - 0.5 for row in range(len(names) + 1)], minor=True)
        axis.grid(which="minor", color="#dddddd", linewidth=0.5)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_color(PALE)
    return axis


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


# ---------------------------------------------------------------- what it does to the maps and the picture


@dataclass(frozen=True)
class Change:
    """Words of the source and what stands for them in a target, each with its token positions; "" and [] where nothing does."""

    before: str
    before_at: list[int]
    after: str
    after_at: list[int]


def changes(tokenizer: CLIPTokenizer, edit: Edit, target: int = 1) -> list[Change]:
    """The words that an edit swaps, re-weights, adds or drops; new words that follow one another are one phrase, and so
    are dropped ones."""
    M, keep, weights = (table[target - 1].cpu() for table in (edit.M, edit.keep, edit.weights))
    source, own = tokenizer.words(edit.prompts[0]), tokenizer.words(edit.prompts[target])
    found: list[Change] = []
    for word, at in own:
        old = [(name, there) for name, there in source if (M[there][:, at] * keep[at]).any()]
        before, before_at = " ".join(name for name, _ in old), [place for _, there in old for place in there]
        if before != word or (weights[at] != 1).any():
            found.append(Change(before, before_at, word, at))
    taken = (M * keep).sum(1)
    found += [Change(word, at, "", []) for word, at in source if not taken[at].any()]
    return joined(found)


def joined(found: list[Change]) -> list[Change]:
    """Changes, with neighbouring new words joined to phrases, and neighbouring dropped ones."""
    phrases: list[Change] = []
    for new in found:
        last = phrases[-1] if phrases else None
        if last and not last.before and not new.before and new.after_at[0] == last.after_at[-1] + 1:
            phrases[-1] = Change("", [], f"{last.after} {new.after}".replace(" '", "'"), last.after_at + new.after_at)
        elif last and not last.after and not new.after and new.before_at[0] == last.before_at[-1] + 1:
            phrases[-1] = Change(f"{last.before} {new.before}".replace(" '", "'"), last.before_at + new.before_at, "", [])
        else:
            phrases.append(new)
    return phrases


def change_of(tokenizer: CLIPTokenizer, edit: Edit, target: int, word: str, found: list[Change]) -> Change:
    """The change that a word or phrase of either prompt is a part of, or the word as it stands in both."""
    for change in found:
        if word in (change.before, change.after):
            return change
    at = dict(places(tokenizer, [edit.prompts[0], edit.prompts[target]], word))
    return Change(word if 0 in at else "", at.get(0, []), word if 1 in at else "", at.get(1, []))


def before_after(
    free: Result, edited: Result, edit: Edit, caption: str, target: int = 1, words: Sequence[str] | None = None
) -> Figure:
    """Source, target without control, and edited target side by side, and below each picture the maps of some words,
    averaged over the steps: those that the edit changes, or `words` of either prompt."""
    return sheet(before_after_grid(free, edited, edit, target, words), caption)


def before_after_grid(free: Result, edited: Result, edit: Edit, target: int, words: Sequence[str] | None = None) -> Grid:
    maps = check_maps(free, edited)
    rows = changes(maps.tokenizer, edit, target)
    if words is not None:
        rows = [change_of(maps.tokenizer, edit, target, word, rows) for word in words]
    source, own, changed = maps.tokens(0).mean(0), free.maps.tokens(target).mean(0), maps.tokens(target).mean(0)
    grid = [[Cell("source", edited.images[0]), Cell("no control", free.images[target]), Cell("edited", edited.images[target])]]
    for row in rows:
        before = map_cell(row.before, source, row.before_at) if row.before else None
        after = [map_cell(row.after, tokens, row.after_at) if row.after else None for tokens in (own, changed)]
        grid.append([before, *after])
    return grid


def mask_strip(edited: Result, edit: Edit, caption: str, target: int = 1, steps: Sequence[int] | None = None) -> Figure:
    """Source and edited picture, and the local blend's mask, white where the edit is allowed, as it is at some steps."""
    return sheet(mask_grid(edited, edit, target, steps), caption)


def mask_grid(edited: Result, edit: Edit, target: int, steps: Sequence[int] | None = None) -> Grid:
    if edited.masks is None:
        raise PromptError("this result has no masks: generate it with an edit that has a local blend")
    masks, picture = edited.masks[:, target - 1, 0], edited.images[target]  # (steps, h, w)
    row = [Cell("source", edited.images[0]), Cell("edited", picture)]
    for step in some(len(masks), 6) if steps is None else steps:
        says = f"{masks[step].mean():.0%} allowed" if edit.blend.active(step, len(masks)) else "not used yet"
        mask = Image.fromarray((masks[step].cpu() * 255).byte().numpy()).convert("RGB")
        row.append(Cell(f"step {step + 1}\n{says}", mask.resize(picture.size, Image.Resampling.NEAREST)))
    return [row]


# ---------------------------------------------------------------- the whole story


def explain(free: Result, edited: Result, edit: Edit, caption: str, target: int = 1) -> Figure:
    """One edit on a page: source, no control and edited with the maps of the words that changed; the alignment; when the
    edit acts; the mask, if it has a local blend. Both results with record=True, `free` without the edit."""
    maps = check_maps(free, edited)
    tokenizer, steps = maps.tokenizer, len(maps.tokens())
    grids = [before_after_grid(free, edited, edit, target)] + (
        [mask_grid(edited, edit, target)] if edited.masks is not None else []
    )
    tokens = max(alignment_matrix(tokenizer, edit, target).shape)
    beside = tokens <= 24  # the two tables fit side by side
    tables = [0.17 * tokens + 1.7] if beside else [0.13 * tokens + 1.6, 0.13 * tokens + 1.2]
    heights = [grid_size(grids[0])[1], *tables, *(grid_size(grid)[1] for grid in grids[1:])]
    figure = new_figure(WIDTH, sum(heights) + 0.45, caption, f"source: {edit.prompts[0]}\nedited: {edit.prompts[target]}")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    width = grid_size(grids[0])[0]
    draw_grid(parts[0].subfigures(1, 3, width_ratios=[WIDTH - width, 2 * width, WIDTH - width])[1], grids[0])
    left, right = parts[1].subfigures(1, 2) if beside else parts[1:3]
    draw_alignment(left, tokenizer, edit, target)
    draw_windows(right, tokenizer, edit, steps, target)
    if len(grids) > 1:
        draw_grid(parts[-1], grids[1])
    return figure


def check_maps(free: Result, edited: Result) -> Maps:
    """The maps of the edited run; PromptError unless both runs noted theirs."""
    if free.maps is None or edited.maps is None:
        raise PromptError("these results have no maps: generate both with record=True")
    return edited.maps
