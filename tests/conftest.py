"""Small random Stable Diffusions, once a session: as diffusers made them, on disk, and as this package reads them."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import settings

from minip2p import StableDiffusion
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


@pytest.fixture(params=["sd1", "sd2"])
def pair(request) -> Pair:
    """Each flavour in turn."""
    return request.getfixturevalue(request.param)
