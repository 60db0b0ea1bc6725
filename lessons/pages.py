"""Writes each lesson with its outputs as a page to read without running it: python -m lessons.pages [NUMBER ...]

A lesson is a script of cells: `# %% [markdown]` begins prose, `# %%` begins code. This program runs the code cells in order and
writes lessons/pages/lessonN.md: prose, code, printed text, and the figures as small pictures. The script is the only source.
"""

import contextlib
import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from minip2p.save import write_whole

LESSONS = Path(__file__).resolve().parent
PAGES = LESSONS / "pages"
WIDTH, COLOURS = 900, 96  # of a figure on a page: pixels, and colours of its palette
WRONG, OFTEN = 25, 0.05  # a palette that moves more than this share of the pixels by more than so much of 255 is not used
SHOWN = re.compile(r"^-> (.+)$", re.MULTILINE)


def cells_of(script: Path) -> list[tuple[str, str]]:
    """[(kind, text)]: first the docstring as "prose", then each cell as "prose" (without its # signs) or "code"."""
    source = script.read_text()
    docstring, rest = re.match(r'"""(.*?)"""\n(.*)', source, re.DOTALL).groups()
    title, _, about = docstring.partition("\n")
    found = [("prose", f"# {title}\n{about}".strip())]
    for cell in re.split(r"^# %%", rest, flags=re.MULTILINE)[1:]:
        header, _, body = cell.partition("\n")
        if "[markdown]" in header:
            found.append(("prose", re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            found.append(("code", body.strip()))
    return found


def write_page(script: Path) -> Path:
    """Runs one lesson and writes its page; the figures of an earlier page are removed first."""
    name = script.stem.partition("_")[0]
    figures = PAGES / name
    shutil.rmtree(figures, ignore_errors=True)
    figures.mkdir(parents=True)
    namespace = {"__name__": "__main__", "__file__": str(script)}
    parts = [f"<!-- Written by `make pages` from {script.name}. Change the script, not this page. -->"]
    for kind, text in cells_of(script):
        if kind == "prose":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, str(script), "exec"), namespace)  # noqa: S102, the lesson is our own script
        parts += outputs(printed.getvalue(), figures)
    page = PAGES / f"{name}.md"
    write_whole(page, lambda path: path.write_text("\n\n".join(parts) + "\n"))
    return page


def outputs(printed: str, figures: Path) -> list[str]:
    """What a cell printed, as Markdown: text as it is, each figure as a picture."""
    text = SHOWN.sub("", printed).strip("\n")
    text = "\n".join(line for line in text.split("\n") if not re.fullmatch(r"\d+ s on \d+ CPU threads", line))
    parts = [f"```text\n{text}\n```"] if text.strip() else []
    for path in map(Path, SHOWN.findall(printed)):
        if path.suffix != ".png":
            continue  # an explorer page is not shown on a Markdown page
        picture = Image.open(path).convert("RGB")
        if picture.width > WIDTH:
            picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
        parts.append(f"![{path.stem}]({figures.name}/{save_small(picture, figures / path.name).name})")
    return parts


def save_small(picture: Image.Image, path: Path) -> Path:
    """Writes a PNG with a palette, or a WebP where the palette would change the colours of too many pixels. Returns its path."""
    palette = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    error = np.abs(np.asarray(palette.convert("RGB"), int) - np.asarray(picture, int)).max(-1)
    if (error > WRONG).mean() > OFTEN:
        path = path.with_suffix(".webp")
        picture.save(path, quality=50, method=6)
    else:
        palette.save(path, optimize=True)
    return path


def main() -> None:
    wanted = sys.argv[1:] or [str(number) for number in range(1, 10)]
    for number in wanted:
        for script in sorted(LESSONS.glob(f"lesson{number}_*.py")):
            print(write_page(script).relative_to(Path.cwd()), flush=True)


if __name__ == "__main__":
    main()
