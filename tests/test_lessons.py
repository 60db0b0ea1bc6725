"""Lessons as people run them: `make lessonN` in a process of its own, with few steps: their figures, and that what they
write by hand is what the library does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
LESSONS = sorted(path.stem for path in (ROOT / "lessons").glob("lesson*.py"))


def make(target: str, *settings: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", target, f"PYTHON={sys.executable}", *settings]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_runs_draws_its_figures_and_agrees_with_the_library(lesson, tmp_path):
    name = lesson.split("_")[0]
    done = make(name, "STEPS=5", "SEEDS=1", "DEVICE=cpu", f"OUT={tmp_path}")
    assert done.returncode == 0, done.stderr
    figures = [Path(line.removeprefix("-> ")) for line in done.stdout.splitlines() if line.startswith("-> ")]
    assert figures and sorted(figures) == sorted((tmp_path / name).iterdir())
    for figure in figures:
        assert Image.open(figure).size[0] > 300
    compared = [line for line in done.stdout.splitlines() if line.startswith("by hand and by library")]
    assert compared and all(float(line.split()[-1]) < 1e-4 for line in compared)


@pytest.mark.parametrize(
    "setting, named", [("SEED=minus", "SEED=minus"), ("STEPS=0", "STEPS=0"), ("WEIGHTS=/no/where", "/no/where"), ("DEVICE=tpu9", "tpu9")]
)
def test_a_setting_that_cannot_be_used_is_one_line(setting, named, tmp_path):
    done = make("lesson3", setting, f"OUT={tmp_path}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1 and named in lines[0]


def test_make_alone_prints_help_that_names_every_lesson():
    printed = make("help").stdout
    assert all(name in printed for name in ("test", "toy", *(lesson.split("_")[0] for lesson in LESSONS)))
    assert make("lesson99").returncode == 2
