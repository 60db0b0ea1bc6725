"""Lessons with few steps, one of them by `make` in a process of its own; their pages agree with their scripts."""

import ast
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lessons.common import load, settings
from lessons.pages import PAGES, cells_of, save_small

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(path.stem for path in (ROOT / "lessons").glob("lesson*.py"))


def make(target: str, *settings: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", target, f"PYTHON={sys.executable}", *settings]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_runs_draws_its_figures_and_agrees_with_the_library(lesson, tmp_path, monkeypatch, capsys):
    name = lesson.split("_")[0]
    given = {"STEPS": "5", "SEEDS": "1", "SEED": "3", "DEVICE": "cpu", "OUT": str(tmp_path)}
    if lesson == "lesson3_swap":
        done = make(name, *(f"{key}={value}" for key, value in given.items()))
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:  # a new process would import torch and matplotlib again
        for key, value in given.items():
            monkeypatch.setenv(key, value)
        runpy.run_module(f"lessons.{lesson}", run_name="__main__")
        printed = capsys.readouterr().out
    shown = [Path(line.removeprefix("-> ")) for line in printed.splitlines() if line.startswith("-> ")]
    assert shown and sorted(shown) == sorted((tmp_path / name).iterdir())
    for figure in shown:
        if figure.suffix == ".png":
            assert Image.open(figure).size[0] > 300
        else:
            assert figure.read_text().lower().startswith("<!doctype html>")
    compared = re.findall(r"by hand and by library: .*? (\d\.\de[+-]\d\d)", printed)
    assert compared and all(float(number) < 1e-3 for number in compared), compared
    assert "seed 3" in printed or "seeds 3" in printed or lesson[6] in "789", "SEED and SEEDS are used"


def test_a_setting_that_cannot_be_used_is_one_line(tmp_path):
    done = make("lesson3", "STEPS=0", f"OUT={tmp_path}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert lines == ["STEPS=0 is not a whole number from 5 to 999"]


@pytest.mark.parametrize("setting", ["SEED=minus", "STEPS=4", "SEEDS=none", "WEIGHTS=/no/where", "DEVICE=tpu9"])
def test_every_setting_is_checked(setting, tmp_path, monkeypatch, capsys):
    name, value = setting.split("=")
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stopped:
        load(settings("lesson3"))
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and value in said


def test_make_alone_prints_help_that_names_every_lesson():
    printed = make("help").stdout
    assert all(name in printed for name in ("test", "toy", "pages", *(lesson.split("_")[0] for lesson in LESSONS)))
    assert make("lesson99").returncode == 2


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_is_short_and_reads_every_setting(lesson):
    source = (ROOT / "lessons" / f"{lesson}.py").read_text()
    assert len(source.splitlines()) <= 170 and max(map(len, source.splitlines())) <= 140
    used = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    assert {"steps", "seeds"} <= used, "STEPS and SEEDS are read"


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_page_has_the_text_and_the_code_of_its_script(lesson):
    page = (PAGES / f"{lesson.split('_')[0]}.md").read_text()
    position = 0
    for kind, text in cells_of(ROOT / "lessons" / f"{lesson}.py"):
        part = text if kind == "prose" else f"```python\n{text}\n```"
        found = page.find(part, position)
        assert found >= 0, f"run `make pages`: the page of {lesson} lacks\n{part[:400]}"
        position = found + len(part)


@pytest.mark.parametrize("lesson", LESSONS)
def test_numbers_in_a_lesson_s_prose_were_printed_or_are_in_its_code(lesson):
    """Decimals, percentages and decibels. A claim with a number stands beside the output that has it."""
    page = (PAGES / f"{lesson.split('_')[0]}.md").read_text()
    fenced = "\n".join(re.findall(r"^```(?:python|text)\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    known = set(re.findall(r"\d+(?:\.\d+)?", fenced)) | {f"{100 * float(n):g}" for n in re.findall(r"\b[01]\.\d+\b", fenced)}
    prose = re.sub(r"^```.*?^```", "", page.split("## Exercises")[0], flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^( {4}.*|#.*|!\[.*|.*make lesson.*)$", "", prose, flags=re.MULTILINE)  # formulas, headings, pictures
    prose = re.sub(r"`[^`]*`|\(?\b[A-Z][\w. &]+ (et al\. )?\d{4}\)?|arXiv:? ?\d+\.\d+", "", prose)  # code, citations
    quoted = re.findall(r"\d+\.\d+|\d+(?= ?%)|\d+(?= dB)", prose)
    assert [number for number in quoted if number not in known] == []


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_page_shows_figures_that_are_there_and_small(lesson):
    page = (PAGES / f"{lesson.split('_')[0]}.md").read_text()
    figures = [PAGES / target for target in re.findall(r"!\[.*?\]\((.*?)\)", page)]
    assert len(figures) >= 3 and all(figure.exists() for figure in figures)


# ---------------------------------------------------------------- what the lessons claim, in the tables of their pages

Table = dict[str, dict[str, float]]  # row -> column -> number


def page_table(lesson: int, caption: str) -> Table:
    """The table of a page whose caption begins so."""
    page = (PAGES / f"lesson{lesson}.md").read_text()
    [lines] = re.findall(rf"^{re.escape(caption)}.*\n((?:.+\n)+?)(?=\n|```)", page, re.MULTILINE)
    header, *rows = lines.splitlines()
    ends = [match.end() for match in re.finditer(r"\S(?:\s?\S)*", header)]
    columns = re.findall(r"\S(?:\s?\S)*", header)
    found: Table = {}
    for row in rows:
        cells = list(re.finditer(r"\S(?:\s?\S)*", row))
        values = {columns[ends.index(cell.end())]: cell.group() for cell in cells[1:] if cell.end() in ends}
        numbers = {column: re.match(r"-?\d+(?:\.\d+)?", value) for column, value in values.items()}
        found[cells[0].group()] = {column: float(number.group()) for column, number in numbers.items() if number}
    return found


RISING = [  # (lesson, caption of the table, column, rows in which the number does not fall and is larger at the end)
    (1, "'a cat next to a house", "cat and house found", ["w = 0", "w = 1", "w = 7.5"]),
    (1, "'a cat next to a house", "contrast", ["w = 0", "w = 1", "w = 7.5"]),
    (3, "cat -> tree", "layout", ["no control", "n-th map, 0.8", "0.8/0", "0.8/0.4", "1/0.4", "0.8/0.8", "1/1"]),
    (3, "cat -> tree", "layout", ["no control", "0.2/0", "0.8/0"]),
    (3, "cat -> tree", "tree, no cat", ["1/1", "0.8/0.8", "0.8/0.4"]),
    (3, "the target's noise", "layout", ["seed 3, no control", "seed 3, seed 0's maps", "seed 0, its own maps"]),
    (4, "an object dropped", "layout", ["dog dropped, no control", "dog dropped, Prompt-to-Prompt"]),
    (4, "an object dropped", "layout", ["dog added, no control", "dog added, Prompt-to-Prompt"]),
    (5, "darkness", "night × 8", ["re-weighted", "rows divided by their sums"]),
    (6, "red -> blue house", "PSNR outside (dB)", ["swap", "swap, blend at 0.3"]),
    (6, "red -> blue house", "layout inside", ["inpainting the box", "swap in the box"]),
    (7, "4 unseen drawings", "guidance 7.5: median", ["5 steps, from t = 801", "20 steps, from t = 951", "40 steps, from t = 976"]),
    (7, "4 generated pictures", "inverted noise: both", ["guidance 1", "guidance 5", "guidance 7.5"]),
    (7, "one object swapped", "source", ["guidance 5", "guidance 1"]),
    (7, "4 unseen drawings", "guidance 1: median", ["40 steps, from t = 976", "20 steps, from t = 951", "5 steps, from t = 801"]),
    (7, "PSNR in dB", "guidance 7.5", ["mean, unusual", "mean, usual"]),
    (8, "reconstruction", "PSNR", ["one for all steps, budget x 1", "one for all steps, budget x 2", "one per step"]),
    (8, "4 drawings", "edit's background", ["nothing", "empty prompt"]),
    (8, "4 drawings", "edit's background", ["prompt", "empty prompt"]),
    (8, "4 drawings", "success", ["prompt, carried over", "prompt", "empty prompt"]),
    (9, "8 drawings", "source, dB", ["ddim", "negative-prompt", "null-text", "direct"]),
    (9, "8 drawings", "background, dB", ["ddim", "direct", "null-text"]),
    (9, "8 drawings", "evaluations", ["direct", "null-text"]),
]  # fmt: skip


@pytest.mark.parametrize("lesson, caption, column, rows", RISING, ids=lambda value: None)
def test_claims_hold_in_the_tables_of_the_pages(lesson, caption, column, rows):
    """The pages are written by `make pages` at the lessons' own settings."""
    table = page_table(lesson, caption)
    values = [table[row][column] for row in rows]
    assert values == sorted(values) and values[0] < values[-1], values


def test_control_keeps_more_of_the_layout_for_every_phrase_of_lesson_4():
    rows = page_table(4, "'a dog next to a castle' plus one phrase").values()
    assert len(rows) == 5 and all(row["layout: 0.8/0.4"] > row["layout: no control"] for row in rows)


def test_weights_of_lesson_5_go_the_right_way():
    rows = page_table(5, "quantity of each word")
    for word in ("cloudy", "starry", "night"):
        below, gone, said, twice, *_ = rows[word].values()
        assert max(below, gone) < 0.8 * said and abs(twice - said) <= said - gone + 1e-9, word  # printed with two digits
    assert max(rows["night"].values()) == rows["night"]["× 2"] > rows["night"]["× 4"] > rows["night"]["× 8"]
    assert max(rows["red"].values()) - min(rows["red"].values()) < 0.03


def test_a_figure_on_a_page_has_the_lesson_s_colours(tmp_path):
    """A chart keeps its few colours as a PNG. A palette would falsify a picture of many colours, so that becomes a WebP."""
    chart = Image.new("RGB", (64, 64), "white")
    chart.paste((200, 30, 30), (8, 8, 40, 40))
    blocks = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    many = Image.fromarray(blocks).resize((256, 256), Image.Resampling.NEAREST)
    for picture, suffix in ((chart, ".png"), (many, ".webp")):
        saved = save_small(picture, tmp_path / "figure.png")
        shown = np.asarray(Image.open(saved).convert("RGB"), int)
        assert saved.suffix == suffix and np.abs(shown - np.asarray(picture, int)).mean() < 8


def test_pages_together_are_small():
    assert sum(path.stat().st_size for path in PAGES.glob("*/*")) < 3_000_000
