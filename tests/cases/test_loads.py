"""Every row of the table in weights/README.md: the model loads, equals diffusers, and says at most one line."""

import re
from pathlib import Path

import pytest
import torch

from minip2p import StableDiffusion
from tests.cases.loads import ROWS, table
from tests.pipelines import difference

PROMPTS = ["a red cat next to a blue house, at night!", ""]
README = Path(__file__).parents[2] / "weights/README.md"


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.model} - {row.form}"[:90] for row in ROWS])
def test_it_loads_and_equals_diffusers(tmp_path, capsys, row):
    case = row.write(tmp_path)
    capsys.readouterr()
    sd = StableDiffusion.load(case.path, "cpu", prediction_type=case.prediction_type)
    said = capsys.readouterr()
    assert said.out == ""
    if case.note is None:
        assert said.err == ""
    else:
        assert said.err.count("\n") == 1 and re.search(case.note, said.err.rstrip("\n")), said.err
        assert said.err.startswith(f"minip2p: {case.path}: ")

    reference = case.reference
    config = reference.scheduler.config
    assert sd.schedule.prediction_type == config.prediction_type
    assert sd.schedule.timestep_spacing == config.timestep_spacing
    tokens = reference.tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(sd.tokenizer(PROMPTS), tokens)
    latents, images = randn(2, 4, 8, 8), randn(2, 3, 32, 32).clamp(-1, 1)
    with torch.no_grad():
        text = reference.text_encoder(tokens).last_hidden_state
        assert difference(sd.text_encoder(tokens), text) < 2e-5
        assert difference(sd.unet(latents, 501, text), reference.unet(latents, 501, text).sample) < 2e-5
        assert difference(sd.vae.encode(images), reference.vae.encode(images).latent_dist.mean) < 2e-5
        assert difference(sd.vae.decode(latents), reference.vae.decode(latents).sample) < 2e-5


def test_the_table_in_the_readme_is_this_list():
    assert table() in README.read_text(), "write the output of `python -m tests.cases.loads` into weights/README.md"
