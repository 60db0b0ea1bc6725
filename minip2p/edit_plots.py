"""Figures of an edit: what it does to the maps and the picture; and its whole story on one page.

target: which of the edit's prompts, 1 being the first target. Steps are counted from 1 where people read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from PIL import Image

from minip2p.align import places
from minip2p.edit_tables import BELOW, alignment_matrix, alignment_size, draw_alignment, draw_windows, windows_size
from minip2p.edits import Edit
from minip2p.errors import PromptError
from minip2p.maps import Maps
from minip2p.panels import EDGE, WIDTH, Cell, Grid, draw_grid, grid_size, new_figure, sheet, some
from minip2p.pipeline import Result
from minip2p.plots import map_cell
from minip2p.tokenizer import CLIPTokenizer


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
    """The panels of `before_after`."""
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
    """The panels of `mask_strip`."""
    if edited.masks is None:
        raise PromptError("this result has no masks: generate it with an edit that has a local blend")
    masks, picture = edited.masks[:, target - 1, 0], edited.images[target]  # (steps, h, w)
    row = [Cell("source", edited.images[0]), Cell("edited", picture)]
    for step in some(len(masks), 6) if steps is None else steps:
        says = f"{masks[step].mean():.0%} allowed" if edit.blend.active(step, len(masks)) else "not used yet"
        mask = Image.fromarray((masks[step].cpu() * 255).byte().numpy()).convert("RGB")
        row.append(Cell(f"step {step + 1}\n{says}", mask.resize(picture.size, Image.Resampling.NEAREST)))
    return [row]


def explain(free: Result, edited: Result, edit: Edit, caption: str, target: int = 1) -> Figure:
    """One edit on a page: source, no control and edited with the maps of the words that changed; the alignment; when the
    edit acts; the mask, if it has a local blend. Both results with record=True, `free` without the edit."""
    maps = check_maps(free, edited)
    tokenizer, steps = maps.tokenizer, len(maps.tokens())
    grids = [before_after_grid(free, edited, edit, target)] + (
        [mask_grid(edited, edit, target)] if edited.masks is not None else []
    )
    heights = [grid_size(grid)[1] for grid in grids]
    beside = max(alignment_matrix(tokenizer, edit, target).shape) <= 24  # the two tables fit side by side
    left, above, width, height = alignment_size(tokenizer, edit, target, WIDTH / 2 if beside else WIDTH)
    left2, above2, height2 = windows_size(tokenizer, edit, steps, target)
    down = 0 if beside else above + height + 2 * EDGE  # how much lower the windows begin
    right = left + width + 2 * EDGE + left2 if beside else left2
    level = max(above, above2) if beside else above2
    tables = max(level + down + height2 + BELOW, above + height + EDGE)

    prompts = f"source: {edit.prompts[0]}\nedited: {edit.prompts[target]}"
    figure, top = new_figure(WIDTH, sum(heights) + tables, caption, prompts)
    draw_grid(figure, top, grids[0])
    top += heights[0]
    draw_alignment(figure, tokenizer, edit, target, (left, top + above, width, height))
    draw_windows(figure, tokenizer, edit, steps, target, (right, top + down + level, WIDTH - EDGE - right, height2))
    for grid in grids[1:]:
        draw_grid(figure, top + tables, grid)
    return figure


def check_maps(free: Result, edited: Result) -> Maps:
    """The maps of the edited run; PromptError unless both runs noted theirs."""
    if free.maps is None or edited.maps is None:
        raise PromptError("these results have no maps: generate both with record=True")
    return edited.maps
