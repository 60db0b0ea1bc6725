"""README.md and weights/README.md as readers use them: commands are run, Python is run, named files and targets are there."""

import ast
import re
import shlex
from pathlib import Path

import torch

from minip2p.__main__ import main
from tests.test_lessons import make

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "weights/README.md")}


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def shell_lines() -> list[str]:
    lines = "\n".join(block for page in PAGES for block in blocks("sh", page)).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.split(" #")[0].strip())]


OWN = [line for line in shell_lines() if line.startswith("python -m minip2p") and " check " not in line]


def test_commands_run_as_pasted(tmp_path, monkeypatch):
    """One after the other, since some read what others wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lessons").symlink_to(ROOT / "lessons")
    for line in OWN:
        words = shlex.split(line)[3:]
        steps = [] if {"--steps", "--inversion", "--recording"} & set(words) else ["--steps", "2"]
        assert main([*words, *steps, "--device", "cpu"]) == 0, line
        assert Path(words[words.index("-o") + 1]).exists(), line


def test_make_targets_exist():
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    targets |= set(re.findall(r"`make (\w+)", "".join(PAGES.values())))
    assert {"lesson3", "test", "weights", "pages"} <= targets
    for target in targets:
        assert make(target, "--dry-run").returncode == 0, target


def test_every_other_command_is_one_that_is_known():
    known = (
        "python -m minip2p",
        "make ",
        "git clone",
        "URL=",
        "python -m weights.",
        "python -m lessons.",
        "source .venv/bin/activate",
    )
    assert [line for line in shell_lines() if not line.startswith(known)] == []


def test_python_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """All Python of the README in one go, as a reader in one session would type it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (tmp_path / "lessons").symlink_to(ROOT / "lessons")
    code = "\n".join(blocks("python"))
    exec(compile(code.replace("seed=0", "seed=0, steps=2"), "README.md", "exec"), {"torch": torch})
    assert (tmp_path / "dog.png").exists()


def test_the_seam_is_quoted_word_for_word():
    source = (ROOT / "minip2p/attention.py").read_text()
    (quoted,) = [block for block in blocks("py") if "the seam" in block]
    assert all(line.strip() in source for line in quoted.splitlines())


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def modules() -> dict[str, Path]:
    """{"figures/maps.py": path} of the package."""
    package = ROOT / "minip2p"
    return {str(path.relative_to(package)): path for path in package.rglob("*.py") if path.name != "__init__.py"}


def table() -> dict[str, int]:
    return {name: int(lines) for name, lines in re.findall(r"`([\w/]+\.py)` (\d+)\b", PAGES["README.md"])}


def test_the_file_table_is_complete_and_its_line_counts_are_about_right():
    assert set(table()) == set(modules())
    for name, lines in table().items():
        actual = len(modules()[name].read_text().splitlines())
        assert abs(lines - actual) <= max(3, actual / 10), f"{name}: the README says {lines} lines, there are {actual}"


def test_a_file_imports_only_those_above_it():
    """In the order of the table, line by line; also imports that are for types."""
    order = ["minip2p." + name.removesuffix(".py").replace("/", ".") for name in table()]
    for position, name in enumerate(table()):
        for node in ast.walk(ast.parse(modules()[name].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minip2p":
                imported = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "minip2p" else [node.module]
                for module in imported:
                    if module != "minip2p.figures":  # the subpackage's front
                        assert order.index(module) < position, f"{name} imports {module}, which stands below it"
