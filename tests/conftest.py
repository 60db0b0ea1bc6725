"""Small random Stable Diffusions, once a session: as diffusers made them, on disk, and as this package reads them; copies of
their files, to be spoiled."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders import single_file_utils
from hypothesis import settings

from minip2p import Inversion, StableDiffusion, invert, names
from tests.checkpoints import copy, manifest, put
from tests.inversions import METHODS, PROMPT, QUIET, RATE, SIZE, STEPS, photograph
from tests.pipelines import random_pipeline

torch.set_num_threads(1)  # networks this small only wait for a second one
settings.register_profile("minip2p", deadline=None, derandomize=True)
settings.load_profile("minip2p")


@dataclass(frozen=True)
class Pair:
    reference: StableDiffusionPipeline
    folder: Path
    ours: StableDiffusion


def _pair(flavour: str, tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp(flavour)
    reference = random_pipeline(folder, flavour)
    return Pair(reference, folder, StableDiffusion.load(folder, device="cpu"))


@pytest.fixture(scope="session")
def sd1(tmp_path_factory) -> Pair:
    return _pair("sd1", tmp_path_factory)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory) -> Pair:
    return _pair("sd2", tmp_path_factory)


@pytest.fixture(scope="session")
def deep(tmp_path_factory) -> Pair:
    return _pair("deep", tmp_path_factory)


@pytest.fixture(scope="session")
def made(sd1, sd2) -> dict[tuple[str, str], Inversion]:
    """The photograph inverted by (flavour, method)."""
    models = {"sd1": sd1.ours, "sd2": sd2.ours}
    options = {"steps": STEPS, "size": SIZE, "lr": RATE} | QUIET
    return {
        (flavour, method): invert(sd, photograph(), PROMPT, method, **options)
        for flavour, sd in models.items()
        for method in METHODS
        if flavour == "sd1" or method in ("ddim", "null-text")
    }


@pytest.fixture(params=["sd1", "sd2"])
def pair(request) -> Pair:
    """Each flavour in turn."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(sd1, tmp_path) -> Path:
    return copy(sd1.folder, tmp_path / "model")


@pytest.fixture(scope="session")
def compvis(deep) -> dict[str, str]:
    """CompVis's name of every tensor of `deep`, by part and today's name, as diffusers' own converter translates them.

    The converter runs over the names of a real single file; each tensor carries its name's number.
    """
    numbered = list(manifest("sd1-single-file"))
    markers = {name: torch.full((1, 1, 1, 1), i) for i, name in enumerate(numbered)}
    text = single_file_utils.convert_ldm_clip_checkpoint(markers)
    parts = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(markers, deep.reference.unet.config),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(markers, deep.reference.vae.config),
        "text_encoder": {name.removeprefix("text_model."): marker for name, marker in text.items()},
    }
    return {f"{part}.{name}": numbered[marker.flatten()[0]] for part in parts for name, marker in parts[part].items()}


@pytest.fixture(scope="session")
def single_state(deep, compvis) -> dict[str, torch.Tensor]:
    """The tensors of `deep` as a single file has them: CompVis's names, the VAE's attention as 1x1 convolutions, and the rest."""
    parts = {"unet": deep.ours.unet, "vae": deep.ours.vae, "text_encoder": deep.ours.text_encoder}
    state = {compvis[f"{part}.{name}"]: tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    state = {name: t[:, :, None, None] if "attn_1" in name and t.ndim == 2 else t for name, t in state.items()}
    state |= {name: torch.zeros(7) for name in manifest("sd1-single-file") if not name.startswith(tuple(names.PREFIXES.values()))}
    state["model_ema.diffusion_modelout2bias"] = torch.zeros(4)
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


@pytest.fixture
def single(deep, single_state, tmp_path) -> Path:
    """A single file, and the folder `tokenizer` beside it."""
    copy(deep.folder / "tokenizer", tmp_path / "tokenizer")
    return put(tmp_path / "model.safetensors", single_state)
