"""`make toy` in small: every stage runs, goes on where it was stopped, and ends in a checkpoint that loads and draws."""

import subprocess
import sys
from pathlib import Path

import torch

from minip2p import StableDiffusion

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
    lines = train(tmp_path / "run", tmp_path / "toy", 1, "--start", str(ROOT / "weights" / "toy"), "--bf16")
    assert [line.split()[:2] for line in lines] == [["unet", "1/1"], ["decoder", "2/2"]]
    assert float(lines[0].split()[-1]) < 0.2
    before, after = (StableDiffusion.load(folder, device="cpu") for folder in (ROOT / "weights" / "toy", tmp_path / "toy"))
    assert after.tokenizer("a bicycle").tolist() == before.tokenizer("a bicycle").tolist()
    same = [torch.equal(a, b) for a, b in zip(after.vae.encoder.parameters(), before.vae.encoder.parameters())]
    assert all(same)
