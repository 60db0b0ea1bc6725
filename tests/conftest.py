"""Models that all tests share: small random Stable Diffusions, made once per session, and the toy.

diffusers is imported where it is used: the process that hands out the tests loads this file too, and would start seconds later.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from minip2p import Inversion, StableDiffusion, convert, invert
from minip2p.inversion import METHODS
from tests.checkpoints import copy, manifest, put
from tests.inversions import PROMPT, QUIET, RATE, SIZE, STEPS, input_picture

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"

torch.set_num_threads(1)  # networks this small gain nothing from a second thread
if "PYTEST_XDIST_WORKER" in os.environ:  # tests run side by side: the lessons that they start have one thread too
    os.environ["OMP_NUM_THREADS"] = "1"
settings.register_profile("minip2p", deadline=None, derandomize=True)
settings.load_profile("minip2p")


@dataclass(frozen=True)
class Pair:
    """The same model as diffusers made it, on disk, and as this package loads it."""

    reference: Any  # diffusers' StableDiffusionPipeline
    folder: Path
    ours: StableDiffusion


def _pair(kind: str, flavour: str, tmp_path_factory) -> Pair:
    from tests import pipelines

    folder = tmp_path_factory.mktemp(flavour)
    reference = getattr(pipelines, f"{kind}_pipeline")(folder, flavour)
    return Pair(reference, folder, StableDiffusion.load(folder, device="cpu"))


@pytest.fixture(scope="session")
def sd1(tmp_path_factory) -> Pair:
    return _pair("random", "sd1", tmp_path_factory)


@pytest.fixture(scope="session")
def sd2(tmp_path_factory) -> Pair:
    return _pair("random", "sd2", tmp_path_factory)


@pytest.fixture(scope="session")
def deep(tmp_path_factory) -> Pair:
    return _pair("random", "deep", tmp_path_factory)


@pytest.fixture(scope="session")
def sharp1(tmp_path_factory) -> Pair:
    """Attention so uneven that every edit shows."""
    return _pair("sharp", "sd1", tmp_path_factory)


@pytest.fixture(scope="session")
def sharp2(tmp_path_factory) -> Pair:
    return _pair("sharp", "sd2", tmp_path_factory)


@pytest.fixture(params=["sharp1", "sharp2"])
def sharp(request) -> Pair:
    """Each in turn: a model that predicts the noise and one that predicts v."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def toy() -> StableDiffusion:
    return StableDiffusion.load(TOY, device="cpu")


@pytest.fixture(scope="session")
def inversions(sd1, sd2) -> dict[tuple[str, str], Inversion]:
    """Inversions of the picture by (flavour, method)."""
    models = {"sd1": sd1.ours, "sd2": sd2.ours}
    options = {"steps": STEPS, "size": SIZE, "lr": RATE} | QUIET
    return {
        (flavour, method): invert(sd, input_picture(), PROMPT, method, **options)
        for flavour, sd in models.items()
        for method in METHODS
        if flavour == "sd1" or method in ("ddim", "null-text")
    }


@pytest.fixture(params=["sd1", "sd2"])
def pair(request) -> Pair:
    """Each flavour in turn: Stable Diffusion 1 and 2."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def folder(sd1, tmp_path) -> Path:
    return copy(sd1.folder, tmp_path / "model")


@pytest.fixture(scope="session")
def compvis(deep) -> dict[str, str]:
    """CompVis's name of every tensor of `deep`, by its part and its name in a folder, according to diffusers' converter.

    The converter is given the names of a real single file. Each tensor holds the number of its name.
    """
    from diffusers.loaders import single_file_utils

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
    """The tensors of `deep` as in a single file: CompVis's names, the VAE's attention as 1x1 convolutions, and extra tensors."""
    parts = {"unet": deep.ours.unet, "vae": deep.ours.vae, "text_encoder": deep.ours.text_encoder}
    state = {compvis[f"{part}.{name}"]: tensor for part, module in parts.items() for name, tensor in module.state_dict().items()}
    state = {name: t[:, :, None, None] if "attn_1" in name and t.ndim == 2 else t for name, t in state.items()}
    state |= {name: torch.zeros(7) for name in convert.SCHEDULE}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return state


@pytest.fixture
def single(deep, single_state, tmp_path) -> Path:
    """A single file, and the folder `tokenizer` beside it."""
    copy(deep.folder / "tokenizer", tmp_path / "tokenizer")
    return put(tmp_path / "model.safetensors", single_state)
