"""Figures of an edit: how the prompts are aligned, in which steps it acts, what it does to maps and picture.

`target` is the number of the edited prompt, 1 for the first. Steps are counted from 1 in figures.
"""

import textwrap
from collections.abc import Sequence

import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor

from minip2p.checks import check_prompt
from minip2p.compose import Chain
from minip2p.edits import Edit
from minip2p.errors import RequestError
from minip2p.figures.checks import check_aligned, check_edit, check_free, check_steps, maps_of
from minip2p.figures.maps import all_words, describe, map_panel
from minip2p.figures.panels import (
    DPI,
    FONT,
    MUTED,
    SMALL,
    TEXT,
    WIDTH,
    Figure,
    Panel,
    draw_panels,
    evenly,
    fit,
    fold,
    panel_figure,
    with_caption,
)  # fmt: skip
from minip2p.local_blend import LocalBlend
from minip2p.result import Result
from minip2p.tokenizer import CLIPTokenizer

SOURCE, OWN, BLEND = "#5b3a8c", "#f0a04b", "#8aa0ad"  # the source's map; a token's own map; the local blend
ORIGIN = LinearSegmentedColormap.from_list("origin", [OWN, "white", SOURCE])  # from -1 to 1
PALE = "Outside the mask the picture is pale: there the blend keeps the source."
Word = tuple[str, list[int]]  # a word or phrase, or "", and its token positions


def explain(free: Result, result: Result, edit: Edit, caption: str = "", target: int = 1) -> Figure:
    """One edit on a page: source, target without the edit, and edited target, each with the maps of at most four changed
    phrases; the alignment; the steps in which the edit acts, and weights; the mask as it grows, if there is a local blend.
    `free` is the run without the edit, and both runs have record=True."""
    tokenizer = maps_of(result).tokenizer
    check_aligned(tokenizer, edit, target)
    check_free(free, result, edit, target)
    check_edit(result, edit)
    prompts = [edit.prompts[0], edit.prompts[target]]
    rows = changed_maps(free, result, edit, target)
    tokens = max(alignment_matrix(tokenizer, edit, target).shape)
    right = min(4.6, max(3.0, WIDTH - 1.75 * len(rows[0]), 1.0 + 0.13 * tokens))  # inches for the alignment
    parts = 1 if result.masks is None else 2
    figure = Figure(figsize=(WIDTH, 14 * parts), dpi=DPI, layout="constrained")
    table = figure.add_gridspec(parts, 1)
    top, *bottom = [figure.add_subfigure(place) for place in table]
    left_side, right_side = top.subfigures(1, 2, width_ratios=[WIDTH - right, right])
    draw_panels(left_side, rows)
    upper, lower = right_side.subplots(2, 1)
    draw_alignment(upper, tokenizer, edit, target)
    draw_windows(lower, tokenizer, edit, result.steps, target, letters=int(6 * right))
    for part in bottom:
        draw_panels(part, [mask_panels(result, edit, target, evenly(result.steps, 8))])
    title = fold(f"source:  {prompts[0]}\nedited:  {prompts[1]}", 110)
    figure.suptitle(title, x=0.1 / WIDTH, ha="left", linespacing=1.4, **TEXT | {"fontsize": FONT + 1})
    return fit(with_caption(figure, caption, describe(result, ()), PALE if bottom else ""), table)


def alignment(tokenizer: CLIPTokenizer, edit: Edit, caption: str = "", target: int = 1) -> Figure:
    """The mapper: target tokens across, source tokens down, a filled cell where a target token takes a source token's map.
    The last row marks the tokens that keep their own map."""
    check_aligned(tokenizer, edit, target)
    columns = alignment_matrix(tokenizer, edit, target).shape[1]
    figure = Figure(figsize=(min(WIDTH, max(3.6, 1.0 + 0.23 * columns)), 14), dpi=DPI, layout="constrained")
    draw_alignment(figure.subplots(), tokenizer, edit, target)
    return fit(with_caption(figure, caption))


def mask_growth(result: Result, edit: Edit | None, caption: str = "", target: int = 1, steps: Sequence[int] | None = None) -> Figure:
    """Source and edited picture, and the edited picture at some steps (None: six), pale where the local blend's mask is 0.
    edit: that of the result; None means the same."""
    check_prompt(result.prompts, target, first=1)
    check_edit(result, edit)
    edit = result.edit if edit is None else edit
    pictures = [Panel("source", result.images[0]), Panel("edited", result.images[target])]
    masks = mask_panels(result, edit, target, evenly(result.steps, 6) if steps is None else steps)
    return panel_figure([[*pictures, *masks]], caption, PALE)


# ---------------------------------------------------------------- what an edit changes


def changed_words(tokenizer: CLIPTokenizer, edit: Edit, target: int = 1) -> list[tuple[Word, Word]]:
    """(source words, target words) for each phrase that an edit swaps, adds, drops or re-weights; ("", []) for none."""
    check_aligned(tokenizer, edit, target)
    source, words = tokenizer.words(edit.prompts[0]), tokenizer.words(edit.prompts[target])
    mapper, weights = edit.mapper[target - 1].cpu(), edit.equalizer[target - 1].tolist()
    partners = [next((i for i, (_, old) in enumerate(source) if mapper[old][:, new].any()), None) for _, new in words]
    # Shared words stay as they are unless they have a weight. Between them lie the phrases that are swapped, added or dropped.
    shared = [(i, j) for j, i in enumerate(partners) if i is not None and source[i][0] == words[j][0]]
    found, behind = [], (0, 0)  # the first word of each prompt that is not yet looked at
    for i, j in [*shared, (len(source), len(words))]:
        before, after = source[behind[0] : max(i, behind[0])], words[behind[1] : j]
        if before or after:
            found.append((phrase(before), phrase(after)))
        if j < len(words) and weights[words[j][1][0]] != 1:
            found.append((source[i], words[j]))
        behind = (max(i + 1, behind[0]), j + 1)
    return found


def phrase(words: list[Word]) -> Word:
    """Neighbouring words as one."""
    return " ".join(word for word, _ in words).replace(" '", "'"), [place for _, at in words for place in at]


def changed_maps(free: Result, result: Result, edit: Edit, target: int) -> list[list[Panel | None]]:
    """Rows of source, target without the edit, and edited target: the picture, then the maps of the changed words."""
    runs = {"source": (result, 0), "target without the edit": (free, target), "edited": (result, target)}
    rows = []
    for i, (title, (run, prompt)) in enumerate(runs.items()):
        tokens = maps_of(run).tokens(prompt).mean(0)  # (h, w, T)
        words = [pair[min(i, 1)] for pair in changed_words(result.maps.tokenizer, edit, target)[:4]]
        rows.append([Panel(title, run.images[prompt]), *(map_panel(word, tokens, at) if at else None for word, at in words)])
    return rows


def mask_panels(result: Result, edit: Edit, target: int, steps: Sequence[int]) -> list[Panel]:
    """The edited picture at some steps, pale where the local blend's mask is 0."""
    if result.masks is None:
        raise RequestError("this result has no masks: generate it with an edit that has a local blend")
    check_steps(steps, len(result.masks))
    begin = blend_start(edit, len(result.masks)) or 0
    masks, picture = result.masks[:, target - 1, 0], result.images[target].convert("RGB")  # (steps, h, w)
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.85)
    panels = []
    for step in steps:
        mask = Image.fromarray((masks[step].cpu() * 255).byte().numpy()).resize(picture.size, Image.Resampling.NEAREST)
        used = "" if step >= begin else "\n(not used yet)"
        note = f"mask {masks[step].mean():.0%}{used}"
        panels.append(Panel(f"step {step + 1}", Image.composite(picture, pale, mask), note=note))
    return panels


def blend_start(edit, steps: int) -> int | None:
    """The step, from 0, at which the local blend of an edit, or a local blend alone, begins; None without one."""
    if isinstance(edit, Chain):
        return next((start for start in (blend_start(each, steps) for each in edit.edits) if start is not None), None)
    blend = edit.blend if isinstance(edit, Edit) else edit if isinstance(edit, LocalBlend) else None
    return None if blend is None else int(blend.start * steps)


# ---------------------------------------------------------------- alignment and windows


def alignment_matrix(tokenizer: CLIPTokenizer, edit: Edit, target: int) -> Tensor:
    """(source tokens + 1, target tokens), both up to the end token: the mapper, and in the last row -1 where a target token
    keeps its own map."""
    rows, columns = (len(token_labels(tokenizer, edit.prompts[i])) for i in (0, target))
    mapper, has_source = edit.mapper[target - 1].cpu(), edit.has_source[target - 1].cpu()
    return torch.cat([mapper[:rows, :columns], has_source[None, :columns] - 1])


def draw_alignment(axes, tokenizer: CLIPTokenizer, edit: Edit, target: int) -> None:
    """The alignment matrix into axes."""
    matrix = alignment_matrix(tokenizer, edit, target)
    small = SMALL if max(matrix.shape) <= 32 else SMALL | {"fontsize": FONT - 3}
    source, words = (token_labels(tokenizer, edit.prompts[i]) for i in (0, target))
    axes.imshow(matrix.numpy(), cmap=ORIGIN, vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
    axes.set_xticks(range(len(words)), words, rotation=90, **small)
    axes.set_yticks(range(len(matrix)), [*source, "own map"], **small)
    axes.set_xticks([column - 0.5 for column in range(len(words) + 1)], minor=True)
    axes.set_yticks([row - 0.5 for row in range(len(matrix) + 1)], minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.5)
    axes.tick_params(which="both", length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set(color=MUTED, linewidth=0.4)
    axes.axhline(len(source) - 0.5, color=MUTED, linewidth=0.8)
    axes.set_title("each token of the edited prompt\ntakes the map of", **TEXT)
    for row, column in (matrix % 1).nonzero().tolist():
        axes.text(column, row, f"{matrix[row, column]:.2g}"[1:], ha="center", va="center", **small | {"fontsize": FONT - 3})


def window_strips(tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int) -> list[tuple[str, int, int, str]]:
    """(label, first step, step behind the last, colour): a strip for neighbouring words of the edited prompt with one window;
    one for each re-weighted word; then self-attention and the local blend."""
    windows, has_source = edit.cross_replace[target - 1].tolist(), edit.has_source[target - 1].tolist()
    weights, strips = edit.equalizer[target - 1].tolist(), []
    for word, (i, *_) in all_words(tokenizer, edit.prompts[target]):
        label = word if weights[i] == 1 else f"{word} × {weights[i]:g}"
        strip = [label, *windows[i], SOURCE if has_source[i] else OWN, weights[i]]
        same = bool(strips) and weights[i] == 1 and strips[-1][1:] == strip[1:]
        strips[len(strips) - same :] = [[f"{strips[-1][0]} {word}", *strip[1:]] if same else strip]
    strips.append(["self-attention", *edit.self_replace, SOURCE, 1])
    strips += [["local blend", edit.blend.start, 1, BLEND, 1]] if edit.blend else []
    return [(label, int(first * steps), int(last * steps), colour) for label, first, last, colour, _ in strips]


def draw_windows(axes, tokenizer: CLIPTokenizer, edit: Edit, steps: int, target: int, letters: int) -> None:
    """The strips of an edit over the steps, into axes, with labels of at most so many letters."""
    strips, shown = window_strips(tokenizer, edit, steps, target), evenly(steps, 6)
    for row, (_, first, last, colour) in enumerate(strips):
        axes.broken_barh([(0, steps)], (row - 0.3, 0.6), color="#f1f1f3")
        axes.broken_barh([(first, last - first)], (row - 0.3, 0.6), color=colour)
    axes.set_yticks(range(len(strips)), [textwrap.shorten(label, letters, placeholder=" ...") for label, *_ in strips], **SMALL)
    axes.set_xticks([step + 0.5 for step in shown], [step + 1 for step in shown], **SMALL)
    axes.set(xlim=(0, steps), ylim=(len(strips) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step", **TEXT)
    axes.set_title("steps in which the edit acts", **TEXT)
    names = {SOURCE: "the source's map", OWN: "new: its own map", BLEND: "blend"}
    handles = [Patch(color=colour, label=name) for colour, name in names.items() if colour in {strip[-1] for strip in strips}]
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 3.4, "ncols": len(handles)}
    axes.legend(handles=handles, frameon=False, fontsize=FONT - 1, columnspacing=1.2, handlelength=1.2, **below)


def token_labels(tokenizer: CLIPTokenizer, prompt: str) -> list[str]:
    """A label for each token up to the end: its word, and which part of the word where it has several."""
    words = all_words(tokenizer, prompt)
    return [word if len(at) == 1 else f"{word} {i}/{len(at)}" for word, at in words for i in range(1, len(at) + 1)]
