"""README.md and weights/README.md as readers use them: commands are run, Python is run, named files and targets are there."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import torch

from minip2p.__main__ import main
from tests.test_lessons import make

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page: (ROOT / page).read_text() for page in ("README.md", "weights/README.md")}


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


def shell_lines() -> list[str]:
    lines = "\n".join(block for page in PAGES for block in blocks("sh", page)).replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.split("#")[0].strip())]


OWN = [line for line in shell_lines() if line.startswith("python -m minip2p")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Where the commands run one after the other, since some read what others wrote."""
    place = tmp_path_factory.mktemp("readme")
    (place / "lessons").symlink_to(ROOT / "lessons")
    return place


@pytest.mark.parametrize("line", OWN)
def test_commands_run_as_pasted(line, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    words = shlex.split(line)[3:]
    steps = [] if {"--steps", "--inversion", "--recording"} & set(words) else ["--steps", "2"]
    assert main([*words, *steps, "--device", "cpu"]) == 0
    assert (workplace / words[words.index("-o") + 1]).exists()


def test_make_targets_exist():
    targets = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    targets |= set(re.findall(r"`make (\w+)", "".join(PAGES.values())))
    assert {"lesson3", "test", "weights"} <= targets
    for target in targets:
        assert make(target, "--dry-run").returncode == 0, target


def test_every_other_command_is_one_that_is_known():
    known = ("python -m minip2p", "make ", "git clone", "python -m weights.", "python -m lessons.", "source .venv/bin/activate")
    assert [line for line in shell_lines() if not line.startswith(known)] == []


def test_python_runs_from_top_to_bottom(tmp_path, monkeypatch, sd1):
    """All Python of the README in one go, as a reader in one session would type it; real weights are stood in for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    code = "\n".join(blocks("python"))
    stand_in = re.sub(r'"weights/stable-diffusion-v1-5"', repr(str(sd1.folder)), code)
    assert stand_in != code
    (tmp_path / "lessons").symlink_to(ROOT / "lessons")
    exec(compile(stand_in.replace("seed=0", "seed=0, steps=2"), "README.md", "exec"), {"torch": torch})
    assert (tmp_path / "dog.png").exists()


def test_the_seam_is_quoted_word_for_word():
    source = (ROOT / "minip2p/attention.py").read_text()
    (quoted,) = [block for block in blocks("py") if "the seam" in block]
    assert all(line.strip() in source for line in quoted.splitlines())


def test_links_lead_somewhere():
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_map_of_the_files_is_complete_and_its_line_counts_are_about_right():
    said = dict(re.findall(r"^\| `(\w+\.py)` \| (\d+) \|", PAGES["README.md"], re.MULTILINE))
    files = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "minip2p").glob("*.py")}
    assert set(said) == set(files) - {"__init__.py"}
    for name, lines in said.items():
        assert abs(int(lines) - files[name]) <= max(3, files[name] / 10), f"{name}: the README says {lines} lines, there are {files[name]}"


def test_a_file_imports_only_those_above_it():
    order = re.findall(r"^\| `(\w+)\.py` \|", PAGES["README.md"], re.MULTILINE)
    order = ["errors", "files", *(name for name in order if name not in ("errors", "files"))]
    for name in order:
        tree = ast.parse((ROOT / "minip2p" / f"{name}.py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minip2p":
                modules = [alias.name for alias in node.names] if node.module == "minip2p" else [node.module.split(".")[1]]
                for module in modules:
                    assert order.index(module) < order.index(name), f"{name}.py imports {module}, which stands below it"
