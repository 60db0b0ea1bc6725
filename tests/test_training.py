"""`make toy` in small: every stage runs, goes on where it was stopped, and ends in a checkpoint that loads and draws."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from weights.command import command
from weights.toyworld import train, vocabulary

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run(UNet's steps, *more options) -> what the command logs."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(train, "SIZE", replace(train.SIZE, batch=4))

    def run(unet_steps: int, *more: str) -> list[str]:
        given = ["--run", str(tmp_path / "run"), "--to", str(tmp_path / "toy"), "--pictures", "40",
                 "--vae-steps", "2", "--unet-steps", str(unet_steps)]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["train", *given, *more])
        command(train.main)
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith("pictures")]

    return run


def test_all_stages_run_resume_and_export(run, tmp_path):
    lines = run(2)
    assert [line.split()[:2] for line in lines] == [["vae", "2/2"], ["unet", "2/2"]]
    lines = run(3)
    assert [line.split()[:2] for line in lines] == [["unet", "3/3"]]  # the rest was there
    sd = StableDiffusion.load(tmp_path / "toy", device="cpu")
    assert sd.generate("a cat", steps=2, progress=False).images[0].size == (64, 64)


def test_a_run_may_start_from_a_checkpoint(run, tmp_path):
    """Its VAE is kept, UNet and text encoder begin where they were: at random they would be 1 away from any noise."""
    lines = run(1, "--start", str(ROOT / "weights" / "toy"))
    assert [line.split()[:2] for line in lines] == [["unet", "1/1"]]
    assert float(lines[0].split()[-1]) < 0.2
    said = json.loads((tmp_path / "toy" / "tokenizer" / "tokenizer_config.json").read_text())
    assert said["model_max_length"] == vocabulary.CONTEXT  # an earlier toy's context of 77 is cut
    before, after = (StableDiffusion.load(folder, device="cpu") for folder in (ROOT / "weights" / "toy", tmp_path / "toy"))
    assert after.tokenizer("a bicycle").tolist() == before.tokenizer("a bicycle")[:, : vocabulary.CONTEXT].tolist()
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    assert all(torch.equal(a, b) for a, b in zip(after.vae.parameters(), before.vae.parameters()))


@pytest.mark.parametrize("more, said", [
    (["--start", "nowhere"], "weights: nowhere"),
    (["--pictures", "3"], "weights: --pictures 3 is too few"),
    (["unet"], "latents.npy is not there: run the stage `vae` first"),
])  # fmt: skip
def test_mistakes_are_one_line_and_spoil_no_run(tmp_path, monkeypatch, capsys, more, said):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train", "--run", str(tmp_path / "run"), *more])
    with pytest.raises(SystemExit) as stopped:
        command(train.main)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and said in printed and printed.count("\n") == 1, printed
    assert more == ["unet"] or not any((tmp_path / "run").glob("*"))


def test_a_run_keeps_the_settings_it_was_begun_with(tmp_path):
    settings = {"start": None, "pictures": 100}
    assert not train.begun(tmp_path, settings)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert train.begun(tmp_path, settings)
    with pytest.raises(RequestError, match="a run with --start None, not weights/toy: give that, or another --run"):
        train.begun(tmp_path, settings | {"start": "weights/toy"})
