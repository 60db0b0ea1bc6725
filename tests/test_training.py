"""`make toy` in small: every stage runs, goes on where it was stopped, and ends in a checkpoint that loads and draws."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minip2p import StableDiffusion
from minip2p.errors import RequestError
from weights.toyworld import train as train_module
from weights.toyworld import vocabulary

ROOT = Path(__file__).resolve().parent.parent


def train(run: Path, to: Path, unet_steps: int, *more: str) -> list[str]:
    command = [sys.executable, "-m", "weights.toyworld.train", "--run", str(run), "--to", str(to), "--pictures", "100",
               "--vae-steps", "2", "--decoder-steps", "2", "--unet-steps", str(unet_steps), *more]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("pictures")]


def test_all_stages_run_resume_and_export(tmp_path):
    lines = train(tmp_path / "run", tmp_path / "toy", unet_steps=2)
    assert [line.split()[:2] for line in lines] == [["vae", "2/2"], ["unet", "2/2"], ["decoder", "2/2"]]
    lines = train(tmp_path / "run", tmp_path / "toy", unet_steps=3)
    assert [line.split()[:2] for line in lines] == [["unet", "3/3"]]  # the rest was there
    sd = StableDiffusion.load(tmp_path / "toy", device="cpu")
    assert sd.generate("a cat", steps=2, progress=False).images[0].size == (64, 64)


def test_a_run_may_start_from_a_checkpoint(tmp_path):
    """Its VAE is kept, UNet and text encoder begin where they were: at random they would be 1 away from any noise."""
    lines = train(tmp_path / "run", tmp_path / "toy", 1, "--start", str(ROOT / "weights" / "toy"))
    assert [line.split()[:2] for line in lines] == [["unet", "1/1"], ["decoder", "2/2"]]
    assert float(lines[0].split()[-1]) < 0.2
    said = json.loads((tmp_path / "toy" / "tokenizer" / "tokenizer_config.json").read_text())
    assert said["model_max_length"] == vocabulary.CONTEXT  # an earlier toy's context of 77 is cut
    before, after = (StableDiffusion.load(folder, device="cpu") for folder in (ROOT / "weights" / "toy", tmp_path / "toy"))
    assert after.tokenizer("a bicycle").tolist() == before.tokenizer("a bicycle")[:, : vocabulary.CONTEXT].tolist()
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor
    same = [torch.equal(a, b) for a, b in zip(after.vae.encoder.parameters(), before.vae.encoder.parameters())]
    assert all(same)


@pytest.mark.parametrize("more, said", [
    (["--start", "weights/toy", "--size", "large"], "weights: weights/toy is a model of another size"),
    (["--start", "nowhere"], "weights: nowhere"),
    (["--pictures", "3"], "weights: --pictures 3 is too few"),
    (["unet"], "latents.npy is not there: run the stage `vae` first"),
])  # fmt: skip
def test_mistakes_are_one_line_and_spoil_no_run(tmp_path, more, said):
    command = [sys.executable, "-m", "weights.toyworld.train", "--run", str(tmp_path / "run"), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert more == ["unet"] or not any((tmp_path / "run").glob("*"))


def test_a_run_keeps_the_settings_it_was_begun_with(tmp_path):
    settings = {"size": "small", "start": None, "pictures": 100}
    assert not train_module.begun(tmp_path, settings)
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert train_module.begun(tmp_path, settings)
    with pytest.raises(RequestError, match="a run with --start None, not weights/toy: give that, or another --run"):
        train_module.begun(tmp_path, settings | {"start": "weights/toy"})
