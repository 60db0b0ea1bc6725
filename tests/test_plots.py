"""Figures: asserted for what they must contain (words, shares, one scale, panels), that no text is cut off or covered, and
that they are as tall as their content."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from minip2p import Add, LocalBlend, Reweight, StableDiffusion, Swap, edit_plots, edit_tables, panels, plots
from minip2p.__main__ import main
from minip2p.errors import PromptError
from tests.pipelines import random_pipeline

STEPS = 5
SOURCE = "a red cat next to a house on the grass"
SWAPPED = SOURCE.replace("cat", "bicycle")  # one token becomes several
ADDED = "a child's drawing of " + SOURCE + " at night"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    random_pipeline(folder)
    return folder


@pytest.fixture(scope="module")
def sd(folder):
    return StableDiffusion.load(folder, device="cpu")


@pytest.fixture(scope="module")
def swap(sd):
    """(edit, free result, edited result) of a swap with windows of its own and a local blend."""
    prompts = [SOURCE, SWAPPED]
    blend = LocalBlend(sd.tokenizer, prompts, ["cat", "bicycle"], start=0.4)
    edit = Swap(sd.tokenizer, prompts, {"default_": 0.8, "bicycle": (0.2, 0.6)}, 0.4, blend=blend)
    return edit, *(sd.generate(prompts, steps=STEPS, edit=e, record=True, progress=False) for e in (None, edit))


@pytest.fixture(scope="module")
def add(sd):
    prompts = [SOURCE, ADDED]
    edit = Reweight(sd.tokenizer, prompts, {"night": 2.0}, base=Add(sd.tokenizer, prompts))
    return edit, *(sd.generate(prompts, steps=STEPS, edit=e, record=True, progress=False) for e in (None, edit))


def axes_with(figure, titled=True):
    return [axis for axis in figure.axes if axis.images and bool(axis.get_title()) >= titled]


def titles(figure):
    return [axis.get_title() for axis in axes_with(figure)]


def row_names(figure):
    """The names at the left of a grid's rows; the figure's caption and head are no such names."""
    return [text.get_text().replace("\n", " ") for text in figure.texts if text not in (figure._supxlabel, figure._suptitle)]


def maps_of(figure):
    """What is drawn in the figure's colours, each an image of one map."""
    return [
        image
        for axis in figure.axes
        for image in axis.images
        if image.get_array().ndim == 2 and image.cmap.name == panels.COLOURS
    ]


def assert_one_look(figure, bars=1):
    """One scale, one colour bar; all text inside the canvas, and no title on another or on a panel; no empty room."""
    assert len({image.get_clim() for image in maps_of(figure)}) <= 1
    assert sum(axis.get_label() == "<colorbar>" for axis in figure.axes) == bars
    assert figure.get_size_inches()[0] <= panels.WIDTH + 0.01
    agg, canvas = FigureCanvasAgg(figure), figure.bbox
    agg.draw()
    renderer = agg.get_renderer()
    ticks = {label for axis in figure.axes for label in [*axis.get_xticklabels(), *axis.get_yticklabels()]}
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent(renderer)
            if text in ticks and (box.x0 > canvas.width or box.y0 > canvas.height):
                continue  # beyond the end of its axis, so never drawn
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= canvas.width + 1 and box.y1 <= canvas.height + 1, text.get_text()
    heads = [axis.title.get_window_extent(renderer) for axis in figure.axes if axis.get_title()]
    drawn = [axis.get_window_extent(renderer) for axis in figure.axes if axis.images]
    for i, head in enumerate(heads):
        assert not any(overlap(head, other) for other in heads[i + 1 :] + drawn)
    pixels = np.asarray(agg.buffer_rgba())[..., :3]
    filled = (pixels < 250).any((1, 2)).nonzero()[0]  # the lines of pixels that have something in them
    assert np.diff(filled, prepend=0, append=len(pixels)).max() < 0.4 * panels.DPI


def overlap(a, b):
    return min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (768, 512), (64, 128)])
def test_tables_of_pictures(size):
    picture = Image.new("RGB", size, "teal")
    figure = plots.pictures(
        [[picture, None], [picture, picture]], [["one", ""], ["two $5 and $6", "a title " * 12]], "caption " * 40
    )
    assert len(axes_with(figure)) == 3 and titles(figure)[0] == "one"
    assert_one_look(figure, bars=0)
    with pytest.raises(ValueError):
        plots.pictures([[picture]], [["one", "two"]], "a title too many")
    strip = plots.film_strip([picture] * 11, [f"step {i}" for i in range(11)], "caption")
    assert titles(strip) == [f"step {i}" for i in range(11)]
    assert_one_look(strip, bars=0)


def test_sweep_names_rows_and_columns():
    picture = Image.new("RGB", (64, 64), "teal")
    figure = plots.sweep([[picture] * 3] * 2, ["self 0", "a rather long name of a row"], ["0%", "50%", "100%"], "caption")
    assert titles(figure) == ["0%", "50%", "100%"] and len(axes_with(figure, titled=False)) == 6
    assert row_names(figure) == ["self 0", "a rather long name of a row"]
    assert_one_look(figure, bars=0)


# ---------------------------------------------------------------- maps


def test_word_maps_have_every_word_its_share_and_one_scale(sd, swap):
    _, free, _ = swap
    figure = plots.word_maps([("source", free.images[0], free.maps, 0), ("target", free.images[1], free.maps, 1)], "caption")
    found, expected = titles(figure), []
    for prompt, title in enumerate(("source", "target")):
        tokens = free.maps.tokens(prompt).mean((0, 1, 2))
        words = sd.tokenizer.words(free.prompts[prompt])
        end = 1 + sum(len(at) for _, at in words)
        places = [*words, ("(start)", [0]), ("(end, padding)", list(range(end, 77)))]
        expected += [title, *(f"{word}\n{tokens[at].sum():.1%}" for word, at in places)]
    assert [title.replace(",\n", ", ") for title in found] == expected  # a long one is broken into lines
    assert len(maps_of(figure)) == len(found) - 2
    top = max(
        float(free.maps.tokens(p).mean(0)[..., at].sum(-1).max()) for p in (0, 1) for _, at in sd.tokenizer.words(free.prompts[p])
    )
    assert maps_of(figure)[0].get_clim() == pytest.approx((0, top))
    assert_one_look(figure)


def test_negative_maps_are_on_the_scale():
    grid = [[panels.Cell("a", share=torch.tensor([[-0.5, 0.25]])), panels.Cell("b", share=torch.zeros(1, 2))]]
    assert [image.get_clim() for image in maps_of(panels.sheet(grid, ""))] == [(-0.5, 0.25)] * 2


def test_overlays_are_smooth_and_as_large_as_the_picture(swap):
    _, free, _ = swap
    wide = free.images[0].resize((96, 64))
    figure = plots.overlays(wide, free.maps, "caption", words=["cat", "next to"])
    assert [title.split("\n")[0] for title in titles(figure)] == ["picture", "cat", "next to"]
    assert all(image.get_array().shape == (64, 96) for image in maps_of(figure))
    assert_one_look(figure)
    everything = plots.overlays(wide, free.maps, "caption")
    assert len(maps_of(everything)) == len(SOURCE.split())
    assert_one_look(everything)


def test_word_steps(swap):
    _, free, _ = swap
    figure = plots.word_steps(free.images[0], free.maps, "caption", words=["cat", "house"], steps=[0, 4])
    cat = free.maps.word("cat")
    assert titles(figure)[:3] == [f"cat\n{cat.mean():.1%}", f"step 1\n{cat[0].mean():.1%}", f"step 5\n{cat[4].mean():.1%}"]
    assert len(maps_of(figure)) == 6
    torch.testing.assert_close(torch.tensor(maps_of(figure)[2].get_array().data), cat[4])
    assert_one_look(figure)
    assert len(maps_of(plots.word_steps(free.images[0], free.maps, "caption"))) == len(SOURCE.split()) * (1 + STEPS)


def test_layer_maps_show_every_layer_once(swap):
    _, free, _ = swap
    figure = plots.layer_maps(free.images[0], free.maps, "cat", "caption")
    sizes = sorted((image.get_array().shape for image in maps_of(figure)), reverse=True)
    assert sizes == sorted(((site.height, site.width) for site in free.maps.by_site), reverse=True)
    assert row_names(figure) == [f"{h} x {w}" for h, w in dict.fromkeys(sizes)]
    assert_one_look(figure)


def test_curve_names_its_lines():
    figure = plots.curve([0, 1, 2], {"rest": [1, 2, 3], "place": [3, 2, 1]}, "window", "dB", "caption " * 30)
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["rest", "place"] and axis.get_xlabel() == "window"
    assert_one_look(figure, bars=0)


# ---------------------------------------------------------------- edits


def test_alignment_has_words_as_labels_and_the_edit_as_cells(sd, swap, add):
    edit, *_ = swap
    figure = edit_tables.alignment(sd.tokenizer, edit, "caption")
    (axis,) = figure.axes
    source, target = ([text.get_text() for text in labels] for labels in (axis.get_yticklabels(), axis.get_xticklabels()))
    assert source == ["(start)", *SOURCE.split(), "(end)", "its own map"]
    parts = [label for label in target if label.startswith("bicycle")]
    assert len(parts) == len(sd.tokenizer.positions(SWAPPED, "bicycle")) > 1 and parts[0] == f"bicycle 1/{len(parts)}"
    cells = torch.tensor(axis.images[0].get_array().data)
    torch.testing.assert_close(cells[:-1], edit.M[0, : len(source) - 1, : len(target)])
    assert not cells[-1].any()
    assert_one_look(figure, bars=0)

    figure = edit_tables.alignment(sd.tokenizer, add[0], "caption")
    labels, cells = figure.axes[0].get_xticklabels(), figure.axes[0].images[0].get_array()
    own = [label.get_text() for label, cell in zip(labels, cells[-1]) if cell == -1]
    assert own[-2:] == ["at", "night × 2"] and "red" not in own
    assert_one_look(figure, bars=0)


def test_windows_equal_what_the_edit_does_at_each_step(sd, swap):
    edit, *_ = swap
    figure = edit_tables.windows(sd.tokenizer, edit, STEPS, "caption")
    axis = figure.axes[0]
    names, cells = [text.get_text() for text in axis.get_yticklabels()], axis.images[0].get_array()
    rows = {name: row.tolist() for name, row in zip(names, cells)}
    assert rows["house"] == [1, 1, 1, 1, 0] and rows[next(n for n in names if n.startswith("bicycle"))] == [0, 1, 1, 0, 0]
    assert rows["self-attention"] == [1, 1, 0, 0, 0] and rows["local blend"] == [0, 0, 1, 1, 1]
    assert_one_look(figure, bars=0)


def test_new_words_are_told_apart_in_the_windows(sd, add):
    names, raster = edit_tables.window_raster(sd.tokenizer, add[0], STEPS, 1)
    assert raster[names.index("night × 2")].tolist() == [-1, -1, -1, -1, 0] and "local blend" not in names


def test_changes(sd, swap, add):
    def words(edit):
        return [(change.before, change.after) for change in edit_plots.changes(sd.tokenizer, edit)]

    assert words(swap[0]) == [("cat", "bicycle")]
    assert words(add[0])[-1] == ("", "at night") and len(words(add[0])) == 2
    dropped = [SOURCE, SOURCE.replace("red ", "").replace(" on the grass", "")]
    assert words(Add(sd.tokenizer, dropped)) == [("red", ""), ("on the grass", "")]
    assert words(Reweight(sd.tokenizer, [SOURCE, SOURCE], {"cat": 2.0})) == [("cat", "cat")]
    twice = ["a cat and a cat", "a cat and a dog"]
    (change,) = edit_plots.changes(sd.tokenizer, Swap(sd.tokenizer, twice))
    assert change.before_at == sd.tokenizer.positions(twice[0], "cat")[-1:]


def test_before_after(sd, swap):
    edit, free, edited = swap
    figure = edit_plots.before_after(free, edited, edit, "caption", words=["bicycle", "house"])
    assert titles(figure)[:3] == ["source", "no control", "edited"]
    assert [title.split("\n")[0] for title in titles(figure)[3:]] == ["cat", "bicycle", "bicycle", "house", "house", "house"]
    expected = [free.maps.word("cat", 0), free.maps.word("bicycle", 1), edited.maps.word("bicycle", 1)]
    for image, share in zip(maps_of(figure), expected):
        torch.testing.assert_close(torch.tensor(image.get_array().data), share.mean(0), atol=1e-3, rtol=0)
    assert_one_look(figure)
    with pytest.raises(PromptError, match="cow"):
        edit_plots.before_after(free, edited, edit, "caption", words=["cow"])


def test_mask_strip_shows_the_masks(swap, add):
    edit, _, edited = swap
    figure = edit_plots.mask_strip(edited, edit, "caption", steps=[0, 4])
    assert titles(figure) == ["source", "edited", "step 1\nnot used yet", f"step 5\n{edited.masks[4].mean():.0%} allowed"]
    drawn = torch.tensor(axes_with(figure)[3].images[0].get_array()[::4, ::4, 0] / 255.0)
    torch.testing.assert_close(drawn.float(), edited.masks[4, 0, 0])
    assert_one_look(figure, bars=0)
    with pytest.raises(PromptError, match="local blend"):
        edit_plots.mask_strip(add[2], add[0], "caption")


def test_explain_tells_the_whole_story(sd, swap, add):
    for (edit, free, edited), strips in ((swap, 1), (add, 0)):
        figure = edit_plots.explain(free, edited, edit, "caption")
        found = titles(figure)
        assert found[:3] == ["source", "no control", "edited"]
        assert (
            sum(title.startswith("each token") for title in found) == 1 and sum("steps in which" in title for title in found) == 1
        )
        assert any("not used yet" in title for title in found) == bool(strips)
        assert all(prompt in figure.get_suptitle().replace("\n", " ") for prompt in edit.prompts)
        assert_one_look(figure)


def test_explain_of_long_prompts(sd):
    long = SOURCE + ", a dog in the snow by a river at night, a child's drawing of the blue house" * 2
    prompts = [long, long.replace("red cat", "blue dog")]
    edit = Swap(sd.tokenizer, prompts)
    free, edited = (sd.generate(prompts, steps=1, edit=e, record=True, progress=False) for e in (None, edit))
    assert_one_look(edit_plots.explain(free, edited, edit, "caption"))
    assert_one_look(plots.word_maps([("picture", free.images[0], free.maps, 0)], long))


def test_results_without_maps_are_refused(sd, swap):
    edit, _, edited = swap
    bare = sd.generate(SOURCE, steps=1, progress=False)
    with pytest.raises(PromptError, match="record=True"):
        edit_plots.explain(bare, edited, edit, "caption")


def test_explain_on_the_command_line(folder, tmp_path, capsys):
    common = ["--weights", str(folder), "--steps", "2", "--device", "cpu", "-o", str(tmp_path / "edit.png")]
    page = tmp_path / "story.png"
    assert main(["edit", "a cat on the grass", "a dog on the grass", "--explain", str(page), *common]) == 0
    assert Image.open(page).width > 800 and (tmp_path / "edit.png").exists()
    said = capsys.readouterr()
    assert str(page) in said.out
    targets = ["a dog on the grass", "a house on the grass"]
    assert main(["edit", "a cat on the grass", *targets, "--explain", str(tmp_path / "two.png"), *common]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "2 targets" in error and not (tmp_path / "two.png").exists()


def test_the_empty_prompt_has_no_words_to_show(sd):
    result = sd.generate("", steps=2, record=True, progress=False)
    assert plots.word_maps([("picture", result.images[0], result.maps, 0)], "caption").axes  # start, end and padding have maps
    for figure in (plots.overlays, plots.word_steps):
        with pytest.raises(PromptError, match="no word in the prompt ''"):
            figure(result.images[0], result.maps, "caption")
