"""`make toy` in small: every stage runs, goes on where it was stopped, and ends in a checkpoint that loads and draws."""

import subprocess
import sys
from pathlib import Path

from minip2p import StableDiffusion

ROOT = Path(__file__).resolve().parent.parent


def train(run: Path, to: Path, unet_steps: int) -> list[str]:
    command = [sys.executable, "-m", "weights.toyworld.train", "--run", str(run), "--to", str(to), "--pictures", "100",
               "--vae-steps", "2", "--decoder-steps", "2", "--unet-steps", str(unet_steps)]  # fmt: skip
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
