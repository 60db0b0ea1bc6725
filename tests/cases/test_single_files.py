"""Single files: renamed as diffusers renames them, at full size by name and shape, and what they say about themselves."""

from pathlib import Path

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import load_file, save_file

from minip2p import RequestError, StableDiffusion, checkpoint, convert
from minip2p.clip import CLIPConfig, TextEncoder
from minip2p.unet import UNet, UNetConfig
from minip2p.vae import VAE, VAEConfig
from tests.cases.loads import EPS_YAML, V_YAML, template
from tests.cases.models import compvis_unet, compvis_vae, open_clip_text, single_file, write_single
from tests.checkpoints import manifest, refused

META = torch.device("meta")


def published(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a published file, without their numbers."""
    return {name: torch.empty(shape, device=META) for name, shape in manifest(name).items() if "position_ids" not in name}


def test_full_size_single_file_of_stable_diffusion_2():
    """The names of the real single file are made from the real folder's names; every tensor must find its place."""
    parts = published("sd2-unet"), published("sd-vae"), published("sd2-text_encoder")
    state = compvis_unet(parts[0], 2) | compvis_vae(parts[1]) | open_clip_text(parts[2])
    file = convert.split_single_file(state)
    unused = "cond_stage_model.model.transformer.resblocks.23."
    assert len([name for name in file.left_aside if name.startswith(unused)]) == 12
    assert {name for name in file.left_aside if not name.startswith(unused)} == {
        "cond_stage_model.model.text_projection", "cond_stage_model.model.logit_scale"
    }  # fmt: skip
    sizes = {"block_out_channels": (320, 640, 1280, 1280), "heads": (5, 10, 20, 20), "cross_attention_dim": 1024}
    for v_prediction, sample_size in ((False, 64), (True, 96)):
        expected = UNetConfig(sample_size=sample_size, use_linear_projection=True, **sizes)
        assert convert.infer_unet(file.unet, v_prediction) == expected
    text_config = CLIPConfig(49408, 1024, 4096, 23, 16, 77, "gelu")
    assert convert.infer_clip(file.text_encoder, open_clip=True) == text_config
    assert convert.infer_vae(file.vae) == VAEConfig()
    built = ((UNet, expected, file.unet), (VAE, VAEConfig(), file.vae), (TextEncoder, text_config, file.text_encoder))
    for module_class, config, tensors in built:
        checkpoint.build_and_load(module_class, config, tensors, Path("single"), META, torch.float32)


def test_full_size_names_are_those_of_the_published_file():
    """The rules by which these tests name a single file give exactly the names and shapes of Stable Diffusion 1.5's."""
    ours = compvis_unet(published("sd1-unet"), 2) | compvis_vae(published("sd-vae"))
    real = {
        name: tensor for name, tensor in published("sd1-single-file").items() if name.startswith(("model.diff", "first_stage"))
    }
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in real.items()}


@pytest.mark.parametrize("name", ["sd2", "bk-sdm-base"])
def test_single_file_is_converted_as_diffusers_converts_it(name):
    """Tensor by tensor. (diffusers has no converter for UNets without a middle block.)"""
    _, pipeline = template(name)
    state = single_file(pipeline, name)
    file = convert.split_single_file(state)
    assert file.unet.keys() == pipeline.unet.state_dict().keys()
    references = [
        (file.unet, single_file_utils.convert_ldm_unet_checkpoint(dict(state), pipeline.unet.config)),
        (file.vae, single_file_utils.convert_ldm_vae_checkpoint(dict(state), pipeline.vae.config)),
    ]
    if name == "sd2":
        text = single_file_utils.convert_open_clip_checkpoint(pipeline.text_encoder, dict(state))
        text = {key.removeprefix("text_model."): t for key, t in text.items() if key != "text_projection.weight"}
        references.append((file.text_encoder, text))
    for ours, reference in references:
        assert ours.keys() == reference.keys()
        assert all(torch.equal(tensor.flatten(), reference[key].flatten()) for key, tensor in ours.items())


# ---------------------------------------------------------------- prediction type


def write(folder: Path, name: str, metadata=None, yaml: str | None = None, **more: torch.Tensor) -> Path:
    source, pipeline = template(name)
    state = {key: tensor.half() for key, tensor in single_file(pipeline, name, unused_layer=False).items()} | more
    file = write_single(folder / "model.safetensors", state, source / "tokenizer", metadata)
    if yaml is not None:
        file.with_suffix(".yaml").write_text(yaml)
    return file


MARK = {"v_pred": torch.zeros(0)}
SAID = {  # how a Stable Diffusion 1 file says what it predicts -> what is understood
    "nothing": ({}, "epsilon"),
    "a tensor": (MARK, "v_prediction"),
    "metadata": ({"metadata": {"modelspec.prediction_type": "v"}}, "v_prediction"),
    "metadata, noise": ({"metadata": {"modelspec.prediction_type": "epsilon"}}, "epsilon"),
    "other metadata": ({"metadata": {"format": "pt"}}, "epsilon"),
    "a config": ({"yaml": V_YAML}, "v_prediction"),
    "a config without quotes": ({"yaml": V_YAML.replace('"', "")}, "v_prediction"),
    "a config of noise": ({"yaml": EPS_YAML}, "epsilon"),
    "a text that is no config": ({"yaml": "a note"}, "epsilon"),
    "a tensor against the config": (MARK | {"yaml": EPS_YAML}, "v_prediction"),
}


@pytest.mark.parametrize("said, understood", SAID.values(), ids=SAID)
def test_prediction_type_is_the_one_that_the_file_says(tmp_path, capsys, said, understood):
    file = write(tmp_path, "bk-sdm-tiny", **said)
    capsys.readouterr()
    assert StableDiffusion.load(file, "cpu").schedule.prediction_type == understood
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_prediction_type_given_to_load_goes_first(tmp_path, capsys, prediction_type):
    file = write(tmp_path, "bk-sdm-tiny", **MARK)
    capsys.readouterr()
    assert StableDiffusion.load(file, "cpu", prediction_type=prediction_type).schedule.prediction_type == prediction_type
    folder, _ = template("bk-sdm-tiny")
    assert StableDiffusion.load(folder, "cpu", prediction_type=prediction_type).schedule.prediction_type == prediction_type
    with pytest.raises(RequestError, match="prediction_type is 'v': use epsilon or v_prediction, or leave it out"):
        StableDiffusion.load(file, "cpu", prediction_type="v")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "said, message",
    [
        ({"ztsnr": torch.zeros(0)}, r"\(zero-terminal SNR\), .*: use a model"),
        ({"yaml": V_YAML + "    rescale_betas_zero_snr: True\n"}, r"\(zero-terminal SNR\), .*: use a model"),
        ({"yaml": V_YAML.replace('"v"', '"x0"')}, r"it predicts 'x0', and this package knows noise and v: use"),
        ({"metadata": {"modelspec.prediction_type": "flow"}}, r"it predicts 'flow', and this package knows"),
    ],
)
def test_other_predictions_are_refused(tmp_path, said, message):
    file = write(tmp_path, "bk-sdm-tiny", **said)
    refused(file, f"{file}: .*{message}")


def test_a_model_of_768_pixels_has_its_size(tmp_path):
    file = write(tmp_path, "sd2")
    assert StableDiffusion.load(file, "cpu", prediction_type="v_prediction").unet.config.sample_size == 96
    assert StableDiffusion.load(file, "cpu", prediction_type="epsilon").unet.config.sample_size == 64


def test_the_padding_of_stable_diffusion_2_is_token_0(tmp_path):
    """Whatever the tokenizer's folder says: the one that `make weights` fetches is Stable Diffusion 1's."""
    file = write(tmp_path, "sd2", **MARK)
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>"}')
    assert StableDiffusion.load(file, "cpu").tokenizer("a cat")[0, -1] == 0


def test_unknown_tensors_inside_a_network_are_refused(tmp_path):
    """Names inside a network's own space are that network's, and it takes all of them or none."""
    file = write(tmp_path, "sd2", **MARK)
    state = load_file(file)
    for name in ("cond_stage_model.model.transformer.extra.weight", "model.diffusion_model.label_emb.0.0.weight"):
        save_file(state | {name: torch.zeros(3)}, file)
        refused(file, rf"has an unknown tensor {name.split('model.')[-1]}: it is not the ")
