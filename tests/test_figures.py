"""Figures: the drawn numbers are those of the result, all maps have one scale, and nothing is cut off, covered or left empty."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from PIL import Image

from minip2p import Add, LocalBlend, PromptError, RequestError, Reweight, Site, Swap, figures
from minip2p.__main__ import main
from minip2p.attention_store import Maps
from minip2p.figures import edits, panels
from minip2p.result import Result
from minip2p.tokenizer import CLIPTokenizer
from tests.conftest import TOY
from tests.pipelines import write_tokenizer

STEPS = 5
SOURCE = "a red cat next to a house on the grass"
SWAPPED = SOURCE.replace("cat", "bicycle")  # one token becomes several
ADDED = "a child's drawing of " + SOURCE + " at night"
SITES = [Site(f"layer{i}", "cross", "down", side, side) for i, side in enumerate((8, 8, 4))]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return CLIPTokenizer(folder)


def run(tokenizer, prompts, seed=0, size=(64, 64), masks=False, edit=None):
    """A result with random pictures and maps; the share of the padding is the largest, as in real models."""
    draw, B = torch.Generator().manual_seed(seed), len(prompts)
    scores = {site: torch.randn(STEPS, B, site.height * site.width, 77, generator=draw) for site in SITES}
    maps = {site: score.softmax(-1).half() for site, score in scores.items()}
    images = [Image.fromarray(torch.randint(256, (*size, 3), generator=draw).byte().numpy()) for _ in prompts]
    latents = torch.zeros(B, 4, 16, 16)
    mask = (torch.rand(STEPS, B - 1, 1, 16, 16, generator=draw) > 0.5).float() if masks else None
    return Result(
        images, latents, latents, latents.expand(STEPS + 1, -1, -1, -1, -1), latents.expand(STEPS, -1, -1, -1, -1), tuple(prompts),
        STEPS, 7.5, seed, edit, maps=Maps(tokenizer, tuple(prompts), maps), masks=mask,
    )  # fmt: skip


@pytest.fixture(scope="module")
def swap(tokenizer):
    """(free, result, edit) of a swap with windows of its own and a local blend."""
    prompts = [SOURCE, SWAPPED]
    blend = LocalBlend(tokenizer, prompts, ["cat", "bicycle"], start=0.4)
    edit = Swap(tokenizer, prompts, {"default_": 0.8, "bicycle": (0.2, 0.6)}, 0.4, blend=blend)
    return run(tokenizer, prompts), run(tokenizer, prompts, 1, masks=True, edit=edit), edit


@pytest.fixture(scope="module")
def add(tokenizer):
    prompts = [SOURCE, ADDED]
    edit = Reweight(tokenizer, prompts, {"night": 2.0}, base=Add(tokenizer, prompts))
    return run(tokenizer, prompts), run(tokenizer, prompts, 1, edit=edit), edit


def axes_with_images(figure):
    return [axes for axes in figure.axes if axes.images]


def titles(figure):
    return [axes.get_title().replace("\n", " ") for axes in axes_with_images(figure)]


def notes(figure):
    return [axes.get_xlabel().replace("\n", " ") for axes in axes_with_images(figure)]


def row_labels(figure):
    return [axes.get_ylabel().replace("\n", " ") for axes in axes_with_images(figure) if axes.get_ylabel()]


def maps_in(figure):
    """The images of attention maps, in the order of drawing."""
    return [axes.images[-1] for axes in figure.axes if axes.images and axes.images[-1].cmap.name == panels.COLOURS and
            axes.images[-1].get_array().ndim == 2]  # fmt: skip


def caption_of(figure):
    return figure.get_supxlabel().replace("\n", " ")


def assert_drawn(image, share):
    torch.testing.assert_close(torch.tensor(np.asarray(image.get_array())), share.float(), rtol=0, atol=1e-6)


def assert_laid_out(figure, bars=1, empty=0.5):
    """One scale and colour bar; all text inside the canvas; no title on another title or picture; no band of more than `empty`
    inches without ink; pictures keep their aspect."""
    assert len({image.get_clim() for image in maps_in(figure)}) <= 1
    assert sum(axes.get_label() == "<colorbar>" for axes in figure.axes) == bars
    assert figure.get_figwidth() <= panels.WIDTH + 0.01
    agg, canvas = FigureCanvasAgg(figure), figure.bbox
    agg.draw()
    renderer = agg.get_renderer()
    unused = unused_ticks(figure)
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_text() and artist.get_visible()):
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= canvas.width + 1 and box.y1 <= canvas.height + 1
        assert inside or text in unused, text
    heads = [axes.title.get_window_extent(renderer) for axes in axes_with_images(figure) if axes.get_title()]
    drawn = [axes.get_window_extent(renderer) for axes in axes_with_images(figure)]
    for i, head in enumerate(heads):
        assert not any(overlap(head, other) for other in heads[i + 1 :] + drawn)
    for axes, box in zip(axes_with_images(figure), drawn):
        left, right, bottom, top = axes.images[0].get_extent()
        assert box.height / box.width == pytest.approx(abs((top - bottom) / (right - left)), rel=0.03)
    filled = (np.asarray(agg.buffer_rgba())[..., :3] < 250).any((1, 2)).nonzero()[0]  # lines of pixels with ink
    assert np.diff(filled, prepend=0, append=int(canvas.height)).max() < empty * figure.dpi


def unused_ticks(figure):
    """The labels of ticks beyond the end of an axis: matplotlib keeps them and does not draw them."""
    found = set()
    for axis in [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]:
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks() + axis.get_minor_ticks():
            if not low <= tick.get_loc() <= high:
                found |= {tick.label1, tick.label2}
    return found


def overlap(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


# ---------------------------------------------------------------- word maps


def test_word_maps_show_each_words_share_on_one_scale(tokenizer, swap):
    free, *_ = swap
    figure = figures.word_maps([("source", free, 0), ("target", free, 1)], "Both prompts.")
    expected, shares = [], []
    for prompt, label in enumerate(("source", "target")):
        mean = free.maps.tokens(prompt).mean(0)
        words = tokenizer.words(free.prompts[prompt])
        end = 1 + sum(len(at) for _, at in words)
        places = [*words, ("(start)", [0]), ("(end)", [end]), ("(padding)", list(range(end + 1, 77)))]
        shares += [(name, mean[..., at].sum(-1)) for name, at in places]
        expected += [label, *(f"{name} {mean[..., at].sum(-1).mean():.1%}" for name, at in places)]
    assert titles(figure) == expected
    for image, (_, share) in zip(maps_in(figure), shares, strict=True):
        assert_drawn(image, share)
        assert image.get_interpolation() == "nearest"
    top = max(float(share.max()) for name, share in shares if not name.startswith("("))
    assert maps_in(figure)[0].get_clim() == pytest.approx((0, top))
    grey = {axes.get_title().split("\n")[0] for axes in figure.axes if axes.title.get_color() == panels.MUTED}
    assert grey == {"(start)", "(end)", "(padding)"}
    assert_laid_out(figure)


def test_chosen_words_stand_in_the_rows_that_have_them(swap):
    free, *_ = swap
    rows = [("source", free, 0), ("target", free, 1)]
    figure = figures.word_maps(rows, words=["cat", "bicycle", "the grass"], size=(4, 4))
    assert [title.split(" ")[0] for title in titles(figure)] == ["source", "cat", "the", "target", "bicycle", "the"]
    assert_drawn(maps_in(figure)[1], free.maps.word("the grass", 0, mean=True, size=(4, 4)))
    assert_laid_out(figure)
    with pytest.raises(PromptError, match="cow"):
        figures.word_maps(rows, words=["cat", "cow"])


def test_captions_state_prompts_seed_steps_and_layers(swap):
    free, *_ = swap
    facts = f"{STEPS} steps, guidance 7.5; maps: mean over steps, heads and 2 layers of 8 x 8"
    assert caption_of(figures.word_maps([("picture", free, 0)], "My line.")) == f"My line. {SOURCE!r}, seed 0, {facts}"
    assert figures.describe(free) == f"{SOURCE!r} -> {SWAPPED!r}, seed 0, {facts}"
    assert "seed" not in figures.describe(Result(**{**vars(free), "seed": None}))
    assert figures.describe(free, size=(4, 4)).endswith("and 1 layer of 4 x 4")


def test_negative_maps_are_on_the_scale():
    shares = torch.tensor([[-0.5, 0.25]]), torch.zeros(1, 2)
    figure = panels.panel_figure([[panels.Panel(share=share) for share in shares]])
    assert [image.get_clim() for image in maps_in(figure)] == [(-0.5, 0.25)] * 2


def test_maps_that_are_zero_everywhere_can_be_drawn():
    assert maps_in(panels.panel_figure([[panels.Panel("a", share=torch.zeros(2, 2))]]))[0].get_clim() == (0, 1)


@pytest.mark.parametrize("size", [(64, 64), (64, 128), (96, 64)])
def test_overlays_are_smooth_over_the_picture(tokenizer, size):
    result = run(tokenizer, [SOURCE], size=size)
    figure = figures.overlays(result, ["cat", "next to"])
    assert [title.split(" ")[0] for title in titles(figure)] == ["picture", "cat", "next"]
    for image, word in zip(maps_in(figure), ("cat", "next to")):
        assert_drawn(image, result.maps.word(word, mean=True))
        assert image.get_interpolation() == "bicubic"
        assert image.get_extent() == [0, size[1], size[0], 0] == image.axes.images[0].get_extent()
    assert_laid_out(figure)
    assert len(maps_in(figures.overlays(result))) == len(SOURCE.split())


def test_maps_by_step(swap):
    free, *_ = swap
    figure = figures.maps_by_step(free, ["cat", "house"], steps=[0, 4])
    cat, house = free.maps.word("cat"), free.maps.word("house")
    for image, share in zip(maps_in(figure), [cat.mean(0), cat[0], cat[4], house.mean(0), house[0], house[4]], strict=True):
        assert_drawn(image, share)
    assert titles(figure)[:3] == ["mean of all steps", "step 1", "step 5"] and row_labels(figure) == ["cat", "house"]
    assert notes(figure) == [f"{share.mean():.1%}" for share in (cat, cat[0], cat[4], house, house[0], house[4])]
    assert_laid_out(figure)
    assert len(maps_in(figures.maps_by_step(free, steps=[0], prompt=1))) == 2 * len(SWAPPED.split())  # "a" twice


def test_maps_by_size(swap):
    free, *_ = swap
    figure = figures.maps_by_size(free, ["cat", "house"])
    expected = [free.maps.word(word, mean=True, size=size) for size in ((8, 8), (4, 4)) for word in ("cat", "house")]
    for image, share in zip(maps_in(figure), expected, strict=True):
        assert_drawn(image, share)
    assert row_labels(figure) == ["2 layers of 8 x 8", "1 layer of 4 x 4"]
    assert_laid_out(figure)


def test_long_and_empty_prompts(tokenizer):
    long = ", ".join([SOURCE, "a dog in the snow by a river at night", "a child's drawing of the blue house"])
    assert_laid_out(figures.word_maps([("picture", run(tokenizer, [long]), 0)], "$x_1$ costs $5"))
    empty = run(tokenizer, [""])
    found = titles(figures.word_maps([("picture", empty, 0)]))
    assert [title.split(" ")[0] for title in found] == ["picture", "(start)", "(end)", "(padding)"]
    with pytest.raises(RequestError, match="prompt that has words"):
        figures.maps_by_step(empty)


def test_rows_of_different_runs_each_have_their_settings(tokenizer):
    rows = [("one", run(tokenizer, [SOURCE]), 0), ("two", run(tokenizer, [SWAPPED], 1), 0)]
    caption = caption_of(figures.word_maps(rows))
    assert f"one: {SOURCE!r}, seed 0" in caption and f"two: {SWAPPED!r}, seed 1" in caption
    assert "one:" not in caption_of(figures.word_maps([rows[0], rows[0]]))


def test_what_cannot_be_drawn_is_one_line(tokenizer, swap, add):
    free, result, edit = swap
    long = Swap(tokenizer, [SOURCE, SWAPPED], 0.5)
    for target in (0, -1, 2, True, 1.0):
        for make in (
            lambda: figures.explain(free, result, edit, target=target),
            lambda: figures.alignment(tokenizer, edit, target=target),
            lambda: figures.changed_words(tokenizer, edit, target),
            lambda: figures.mask_growth(result, edit, target=target),
        ):
            refused(make, "target is .* give a number from 1 to 1")
    other = CLIPTokenizer(TOY / "tokenizer", tokenizer.context)
    refused(lambda: figures.alignment(other, edit), "made with the tokenizer of another model")
    refused(lambda: figures.explain(result, result, edit), "the run without the edit has one")
    elsewhere = Result(**vars(free) | {"start": free.start + 1})
    refused(lambda: figures.explain(elsewhere, result, edit), "begins with other noise")
    refused(lambda: figures.maps_by_step(result, ["cat"], 2), "steps is 2: give a list")
    refused(lambda: figures.mask_growth(result, 5), "edit is 5")
    assert notes(figures.mask_growth(result, None)) == notes(figures.mask_growth(result, edit))
    refused(lambda: figures.explain(free, result, long), "is not the edit of this result")
    refused(lambda: figures.explain(add[0], result, edit), "give both the same prompts")
    refused(lambda: figures.explain(free, result, edit.blend), "alignment can be drawn")
    refused(lambda: figures.alignment(tokenizer, "swap"), "edit is 'swap'")
    refused(lambda: figures.mask_growth(result, long), "is not the edit of this result")
    for steps in ([-1], [STEPS], [0.5]):
        refused(lambda: figures.mask_growth(result, edit, steps=steps), f"it had {STEPS}")
        refused(lambda: figures.maps_by_step(result, ["cat"], steps), f"it had {STEPS}")
    for make in (figures.overlays, figures.maps_by_step, figures.maps_by_size):
        refused(lambda: make(result, prompt=2), "prompt")
    refused(lambda: figures.word_maps([("x", result, 2)]), "prompt is 2 and there are 2 prompts, counted from 0")
    refused(lambda: figures.word_maps([]), "there are no rows")


def refused(call, reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as error:
        call()
    assert "\n" not in str(error.value)


def test_the_masks_of_a_blend_alone(tokenizer, swap):
    blend = swap[2].blend
    result = run(tokenizer, [SOURCE, SWAPPED], masks=True, edit=blend)
    early, late = (f"mask {result.masks[step].mean():.0%}" for step in (0, 4))
    assert notes(figures.mask_growth(result, blend, steps=[0, 4])) == ["", "", f"{early} (not used yet)", late]


def test_results_without_maps_or_masks_are_refused(swap, add):
    bare = Result(**{**vars(swap[0]), "maps": None})
    for make in (figures.overlays, figures.maps_by_step, figures.maps_by_size, figures.describe):
        with pytest.raises(RequestError, match="record=True"):
            make(bare)
    with pytest.raises(RequestError, match="record=True"):
        figures.explain(bare, *swap[1:])
    with pytest.raises(RequestError, match="local blend"):
        figures.mask_growth(add[1], add[2])


# ---------------------------------------------------------------- pictures and curves


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (768, 512), (64, 128)])
def test_grid_of_pictures(size):
    picture = Image.new("RGB", size, "teal")
    below = [["24.1 dB", ""], ["", "a note that is longer"]]
    figure = figures.grid([[picture, None], [picture, picture]], ["a", "a rather long label of a row"], ["$5", "a title " * 8],
                          "caption " * 40, below)  # fmt: skip
    assert titles(figure)[0] == "$5" and len(axes_with_images(figure)) == 3
    assert row_labels(figure) == ["a", "a rather long label of a row"]
    assert notes(figure) == ["24.1 dB", "", "a note that is longer"]
    image = figure.axes[0].images[0]
    assert (np.asarray(image.get_array()) == np.asarray(picture)).all()
    assert (image.get_interpolation() == "nearest") == (max(size) < 300)
    assert_laid_out(figure, bars=0)


def test_grid_refuses_labels_that_do_not_fit():
    picture = Image.new("RGB", (8, 8))
    with pytest.raises(RequestError, match="1 columns and 2 column labels"):
        figures.grid([[picture]], column_labels=["a", "b"])
    with pytest.raises(RequestError, match="2 rows and 1 row labels"):
        figures.grid([[picture], [picture]], row_labels=["a"])
    with pytest.raises(RequestError, match="nothing to draw"):
        figures.grid([])


def test_curves():
    figure = figures.curves(range(1, 4), {"a": [1, 2, 3], "b": [3, 2, 1]}, "step", "dB", "caption " * 30, yscale="log")
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 2, 3], [3, 2, 1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("step", "dB", "log")
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
    assert_laid_out(figure, bars=0)


@pytest.mark.parametrize("total, count, steps", [(50, 3, [0, 24, 49]), (2, 6, [0, 1]), (1, 6, [0]), (50, 1, [0])])
def test_evenly(total, count, steps):
    assert figures.evenly(total, count) == steps


def test_a_figure_shows_itself_without_pyplot(swap):
    figure = figures.overlays(swap[0], ["cat"])
    picture = Image.open(io.BytesIO(figure._repr_png_()))
    assert picture.size == tuple(int(side) for side in figure.bbox.size) and picture.format == "PNG"
    code = "import sys, minip2p.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------- edits


def test_alignment_draws_the_mapper(tokenizer, swap, add):
    edit = swap[2]
    figure = figures.alignment(tokenizer, edit, "caption")
    (axes,) = figure.axes
    source, target = ([text.get_text() for text in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels()))
    assert source == ["(start)", *SOURCE.split(), "(end)", "own map"]
    pieces = [label for label in target if label.startswith("bicycle")]
    assert len(pieces) == len(tokenizer.positions(SWAPPED, "bicycle")) > 1 and pieces[0] == f"bicycle 1/{len(pieces)}"
    cells = torch.tensor(np.asarray(axes.images[0].get_array()))
    torch.testing.assert_close(cells[:-1], edit.mapper[0, : len(source) - 1, : len(target)])
    assert not cells[-1].any()
    assert [text.get_text() for text in axes.texts] == [f"{1 / len(pieces):.2g}"[1:]] * len(pieces)
    assert_laid_out(figure, bars=0)

    axes = figures.alignment(tokenizer, add[2]).axes[0]
    own = [label.get_text() for label, cell in zip(axes.get_xticklabels(), axes.images[0].get_array()[-1]) if cell == -1]
    assert own[-2:] == ["at", "night"] and "red" not in own


def test_strips_show_what_the_edit_does_at_each_step(tokenizer, swap):
    edit = swap[2]
    strips = {label: (first, last, colour) for label, first, last, colour in edits.window_strips(tokenizer, edit, STEPS, 1)}
    assert list(strips) == ["(start) a red", "bicycle", "next to a house on the grass (end)", "self-attention", "local blend"]
    attn, site = torch.rand(2, 1, 9, 77), Site("layer", "cross", "down", 3, 3)
    for label, word in (("bicycle", "bicycle"), ("(start) a red", "red"), ("next to a house on the grass (end)", "house")):
        place = tokenizer.positions(SWAPPED, word)[0]
        acts = [bool((edit.at(step, STEPS)(attn, site)[1] != attn[1])[..., place].any()) for step in range(STEPS)]
        assert acts == [strips[label][0] <= step < strips[label][1] for step in range(STEPS)], label
    wants = [edit.at(step, STEPS).wants(Site("layer", "self", "down", 3, 3)) for step in range(STEPS)]
    assert wants == [step < strips["self-attention"][1] for step in range(STEPS)]
    assert strips["local blend"][:2] == (2, STEPS)


def test_strips_of_new_and_reweighted_words(tokenizer, add):
    strips = [(label, colour) for label, *_, colour in edits.window_strips(tokenizer, add[2], STEPS, 1)]
    assert ("night × 2", edits.OWN) in strips and ("at", edits.OWN) in strips
    assert strips[-1] == ("self-attention", edits.SOURCE)


@pytest.mark.parametrize(
    "source, target, changed",
    [
        (SOURCE, SWAPPED, [("cat", "bicycle")]),
        (SOURCE, SOURCE + " at night", [("", "at night")]),
        (SOURCE, SOURCE.replace("red ", "").replace(" on the grass", ""), [("red", ""), ("on the grass", "")]),
        ("a cat and a cat", "a cat and a dog", [("cat", "dog")]),
    ],
)
def test_changed_words(tokenizer, source, target, changed):
    found = figures.changed_words(tokenizer, Add(tokenizer, [source, target]))
    assert [(before, after) for (before, _), (after, _) in found] == changed
    before, after = found[-1]
    assert before[1] == (tokenizer.positions(source, before[0])[-len(before[1]) :] if before[0] else [])
    assert after[1] == (tokenizer.positions(target, after[0]) if after[0] else [])


def test_changed_words_are_those_of_the_mapper(tokenizer):
    """The prompts are of equal length, so `Swap` pairs them word by word, although a dog and a cat are in both."""
    edit = Swap(tokenizer, ["a red cat and a black dog", "a black dog and a red cat"])
    found = [(before, after) for (before, _), (after, _) in figures.changed_words(tokenizer, edit)]
    assert found == [("red cat", "black dog"), ("black dog", "red cat")]


def test_reweighted_words_are_changed(tokenizer):
    edit = Reweight(tokenizer, [SOURCE, SOURCE], {"cat": 2.0})
    assert [(before[0], after[0]) for before, after in figures.changed_words(tokenizer, edit)] == [("cat", "cat")]


def test_masks_leave_the_picture_pale_outside(swap):
    _, result, edit = swap
    figure = figures.mask_growth(result, edit, "caption", steps=[0, 4])
    assert titles(figure) == ["source", "edited", "step 1", "step 5"]
    shares = [f"mask {result.masks[step].mean():.0%}" for step in (0, 4)]
    assert notes(figure) == ["", "", f"{shares[0]} (not used yet)", shares[1]]
    picture = torch.tensor(np.asarray(result.images[1])).float()
    inside = result.masks[4, 0, 0].repeat_interleave(4, 0).repeat_interleave(4, 1)[..., None]
    drawn = torch.tensor(np.asarray(axes_with_images(figure)[3].images[0].get_array())).float()
    torch.testing.assert_close(drawn, inside * picture + (1 - inside) * (0.15 * picture + 0.85 * 255), rtol=0, atol=1)
    assert_laid_out(figure, bars=0)


def test_explain_shows_pictures_maps_alignment_windows_and_masks(swap, add):
    for free, result, edit in (swap, add):
        figure = figures.explain(free, result, edit, "caption")
        (before, after), *_ = figures.changed_words(result.maps.tokenizer, edit)
        expected = [result.maps.tokens(0), free.maps.tokens(1), result.maps.tokens(1)]
        expected = [tokens.mean(0)[..., at].sum(-1) for tokens, (_, at) in zip(expected, (before, after, after)) if at]
        drawn = maps_in(figure)[:: len(maps_in(figure)) // len(expected)]
        for image, share in zip(drawn, expected, strict=True):
            assert_drawn(image, share)
        found = titles(figure)
        assert [title for title in found if title in ("source", "target without the edit", "edited")] == [
            "source", "target without the edit", "edited"]  # fmt: skip
        assert sum(title.startswith("each token") for title in found) == 1
        assert any("not used yet" in note for note in notes(figure)) == (result.masks is not None)
        strips = next(axes for axes in figure.axes if "steps in which" in axes.get_title())
        assert [label.get_text() for label in strips.get_yticklabels()][-1] == ("local blend" if edit.blend else "self-attention")
        spans = [(box.x0, box.x1) for bar in strips.collections[1::2] for box in [bar.get_paths()[0].get_extents()]]
        assert spans == [(first, last) for _, first, last, _ in edits.window_strips(result.maps.tokenizer, edit, STEPS, 1)]
        assert {to_hex(bar.get_facecolor()[0]) for bar in strips.collections[1::2]} <= {edits.SOURCE, edits.OWN, edits.BLEND}
        head = figure.get_suptitle().replace("\n", " ")
        assert all(prompt in head for prompt in edit.prompts) and "seed 1" in caption_of(figure)
        assert_laid_out(figure, empty=1)


def test_explain_of_long_prompts(tokenizer):
    long = SOURCE + ", a dog in the snow by a river at night, a child's drawing of the blue house" * 2
    prompts = [long, long.replace("cat", "dog").replace("snow", "grass").replace("night", "day") + " in the snow at night"]
    edit = Reweight(tokenizer, prompts, {"red": -2, "river": 3}, base=Swap(tokenizer, prompts))
    assert len(figures.changed_words(tokenizer, edit)) > 4
    free, result = run(tokenizer, prompts), run(tokenizer, prompts, 1, size=(64, 96), edit=edit)
    figure = figures.explain(free, result, edit)
    assert len(maps_in(figure)) <= 3 * 4
    assert_laid_out(figure, empty=2)


def test_second_target(tokenizer):
    prompts = [SOURCE, SWAPPED, SOURCE.replace("house", "dog")]
    edit = Swap(tokenizer, prompts, blend=LocalBlend(tokenizer, prompts, ["house", "dog"]))
    free, result = run(tokenizer, prompts), run(tokenizer, prompts, 1, masks=True, edit=edit)
    figure = figures.explain(free, result, edit, target=2)
    assert_drawn(maps_in(figure)[2], result.maps.word("dog", 2, mean=True))
    pixels = np.asarray(axes_with_images(figure)[4].images[0].get_array())
    assert (pixels == np.asarray(result.images[2])).all()
    assert [label.get_text() for label in figures.alignment(tokenizer, edit, target=2).axes[0].get_xticklabels()][7] == "dog"


def test_explain_on_the_command_line(folder, tmp_path, capsys):
    common = ["--weights", str(folder), "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "edit.png")]
    page = tmp_path / "story.png"
    assert main(["edit", "a cat on the grass", "a dog on the grass", "--explain", str(page), *common]) == 0
    assert Image.open(page).width > 800 and (tmp_path / "edit.png").exists()
    assert str(page) in capsys.readouterr().out
    targets = ["a dog on the grass", "a house on the grass"]
    assert main(["edit", "a cat on the grass", *targets, "--explain", str(tmp_path / "two.png"), *common]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 targets" in error and not (tmp_path / "two.png").exists()
