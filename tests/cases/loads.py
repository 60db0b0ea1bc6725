"""The list of what `StableDiffusion.load` reads: each row is a line of the table in weights/README.md and a test.

python -m tests.cases.loads prints the table.
"""

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from tests.cases.models import configure, make, single_file, write_single

MAX_SHARD = "1MB"
FOLDER, SINGLE = "folder in diffusers' layout", "one `.safetensors` file"


@dataclass(frozen=True)
class Case:
    """A checkpoint on disk and the reference that it must equal."""

    path: Path
    reference: StableDiffusionPipeline
    note: str | None = None  # what the one line on stderr says; None: nothing is said
    prediction_type: str | None = None  # given to `load`


@dataclass(frozen=True)
class Row:
    """model and form: the two columns of the table. write: makes a small model of that form under a folder."""

    model: str
    form: str
    write: Callable[[Path], Case]


TEMPLATES = tempfile.TemporaryDirectory(prefix="minip2p-models-")


@cache
def template(name: str) -> tuple[Path, StableDiffusionPipeline]:
    """A model of a kind, made once: its folder, and diffusers' pipeline. Neither may be changed."""
    path = Path(TEMPLATES.name) / name
    return path, make(name, path)


def folder(name: str, change: Callable[[Path, StableDiffusionPipeline], str | None] | None = None):
    """A writer of a model in diffusers' layout. `change` alters its files and returns what stderr then says."""

    def write(to: Path) -> Case:
        source, reference = template(name)
        shutil.copytree(source, to / "model")
        reference = copy.deepcopy(reference) if change else reference
        return Case(to / "model", reference, change and change(to / "model", reference))

    return write


def single(
    name: str, more: dict | None = None, note: str | None = None, metadata: dict | None = None, beside: str = "", **options
):
    """A writer of a model as one file. more: further tensors. beside: the text of a .yaml. note: as in `Case`."""

    def write(to: Path, file: str = "model.safetensors") -> Case:
        source, reference = template(name)
        state = single_file(reference, name, **options) | (more or {})
        path = write_single(to / file, state, source / "tokenizer", metadata)
        if beside:
            (to / "model.yaml").write_text(beside)
        return Case(path, reference, note)

    return write


def asked(write, prediction_type: str):
    """The same, loaded with prediction_type=, so that nothing has to be assumed."""

    def written(to: Path) -> Case:
        case = write(to)
        return Case(case.path, case.reference, prediction_type=prediction_type)

    return written


def ckpt(to: Path) -> Case:
    """A safetensors file whose name says that it is a pickle."""
    return single("sd1")(to, "model.ckpt")


# ---------------------------------------------------------------- changes of a folder


def variant(name: str, dtype: torch.dtype = torch.float32):
    """All weights under a variant's name, such as .fp16.safetensors."""

    def change(model: Path, reference: StableDiffusionPipeline) -> None:
        for file in [*model.glob("*/*.safetensors")]:
            save_file(
                {key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file.with_suffix(f".{name}.safetensors")
            )
            file.unlink()
        for network in (reference.unet, reference.vae, reference.text_encoder):
            network.to(dtype).float()

    return change


def shards(suffix: str | None = None):
    """The UNet's weights in several files and an index, as save_pretrained writes them."""

    def change(model: Path, reference: StableDiffusionPipeline) -> None:
        (model / "unet/diffusion_pytorch_model.safetensors").unlink()
        reference.unet.save_pretrained(model / "unet", max_shard_size=MAX_SHARD, variant=suffix)
        assert len([*(model / "unet").glob("*.safetensors")]) > 1

    return change


def fewer_layers(model: Path, reference: StableDiffusionPipeline) -> str:
    """A config that counts one layer of two: the file keeps both."""
    configure(model, "text_encoder", num_hidden_layers=1)
    reference.text_encoder = CLIPTextModel.from_pretrained(model / "text_encoder")
    return r"left aside what no network here uses: text_encoder\.encoder\.layers\.1 \(16\)$"


def projection(model: Path, reference: StableDiffusionPipeline) -> str:
    """A text encoder with the projection of a CLIPTextModelWithProjection."""
    file = model / "text_encoder/model.safetensors"
    save_file(load_file(file) | {"text_projection.weight": torch.zeros(64, 64)}, file)
    return r"left aside what no network here uses: text_encoder\.text_projection$"


def added_token(model: Path, reference: StableDiffusionPipeline) -> None:
    """A word that textual inversion added: one more token, and one more row of the embedding."""
    reference.tokenizer.add_tokens(["<cat-toy>"])
    reference.text_encoder.resize_token_embeddings(len(reference.tokenizer), mean_resizing=False)
    reference.text_encoder.save_pretrained(model / "text_encoder")
    shutil.rmtree(model / "tokenizer")
    reference.tokenizer.save_pretrained(model / "tokenizer")
    assert len(CLIPTokenizer.from_pretrained(model / "tokenizer")) == len(reference.tokenizer)


def of_2022(model: Path, reference: StableDiffusionPipeline) -> None:
    """The names that diffusers and transformers wrote in 2022."""
    vae, text = model / "vae/diffusion_pytorch_model.safetensors", model / "text_encoder/model.safetensors"
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(vae)
    for new, old in names.items():
        state = {key.replace(new, old): tensor for key, tensor in state.items()}
    save_file(state, vae)
    state = {f"text_model.{key.removeprefix('text_model.')}": tensor for key, tensor in load_file(text).items()}
    save_file(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, text)


def euler(model: Path, reference: StableDiffusionPipeline) -> str:
    """A folder that was saved with another sampler, whose default spacing is "linspace"."""
    configure(model, "scheduler", _class_name="EulerDiscreteScheduler", timestep_spacing="linspace", use_karras_sigmas=True)
    return r'timestep_spacing "linspace" is another sampler\'s: DDIM uses "leading"$'


LEFT_ASIDE = {
    "cond_stage_model.logit_scale": torch.zeros(()),
    "cond_stage_model.transformer.text_projection.weight": torch.zeros(4, 4),
    "first_stage_model.loss.logvar": torch.zeros(()), "model_ema.diffusion_modelout2bias": torch.zeros(4),
    "model_ema.diffusion_modelout2weight": torch.zeros(4), "betas": torch.zeros(1000), "global_step": torch.zeros(()),
    "optimizer": torch.zeros(3),
}  # fmt: skip
ASIDE_NOTE = (
    r"left aside what no network here uses: cond_stage_model\.logit_scale, cond_stage_model\.transformer\.text_projection, "
    r"first_stage_model\.loss, global_step, model_ema \(2\) and 1 other groups$"
)
SD2_ASIDE = (
    r"left aside what no network here uses: cond_stage_model\.model\.logit_scale, cond_stage_model\.model\.text_projection, "
    r"cond_stage_model\.model\.transformer\.resblocks\.23 \(12\)"
)
V_YAML = 'model:\n  base_learning_rate: 1.0e-4\n  params:\n    parameterization: "v"\n    linear_start: 0.00085\n'
EPS_YAML = 'model:\n  base_learning_rate: 1.0e-4\n  params:\n    # parameterization: "v"\n    linear_start: 0.00085\n'
UNSAID = SD2_ASIDE + r'; nothing says what it predicts, so "epsilon" is assumed, .* needs prediction_type="v_prediction"$'

ROWS = [
    Row("Stable Diffusion 1.1 to 1.5 and fine-tunes of them", FOLDER, folder("sd1")),
    Row("the same", f"{SINGLE} under CompVis's names", single("sd1")),
    Row("the same, with tensors that no network needs (EMA, losses, projections)", SINGLE, single("sd1", LEFT_ASIDE, ASIDE_NOTE)),
    Row("the same, with the VAE's attention under the names of 2022", SINGLE, single("sd1", attention="2022")),
    Row("the same, with the VAE's attention under today's names", SINGLE, single("sd1", attention="today")),
    Row("the same, called `.ckpt` though it is safetensors", "one file", ckpt),
    Row("Stable Diffusion 2.0 and 2.1 base (512 pixels)", FOLDER, folder("sd2-base")),
    Row("the same", f"{SINGLE} under OpenCLIP's names; it is assumed to predict noise, as one line says",
        single("sd2-base", note=UNSAID)),
    Row("the same, with a `.yaml` beside it", SINGLE, single("sd2-base", note=SD2_ASIDE + "$", beside=EPS_YAML)),
    Row("the same, with 23 layers, converted from a folder", SINGLE,
        asked(single("sd2-base", unused_layer=False), "epsilon")),
    Row("Stable Diffusion 2.0 and 2.1 (768 pixels, v-prediction)", FOLDER, folder("sd2")),
    Row('the same, with `prediction_type="v_prediction"` given to `load`', SINGLE,
        asked(single("sd2", unused_layer=False), "v_prediction")),
    Row("any model marked as v-prediction by a tensor `v_pred`", SINGLE, single("sd2", {"v_pred": torch.zeros(0)}, SD2_ASIDE + "$")),
    Row("any model marked as v-prediction in its metadata (`modelspec.prediction_type`)", SINGLE,
        single("sd2", note=SD2_ASIDE + "$", metadata={"modelspec.prediction_type": "v"})),
    Row("any model marked as v-prediction in a `.yaml` beside it", SINGLE, single("sd2", note=SD2_ASIDE + "$", beside=V_YAML)),
    Row("SD-Turbo and other few-step models (trailing timesteps)", FOLDER, folder("turbo")),
    Row("BK-SDM base", FOLDER, folder("bk-sdm-base")),
    Row("BK-SDM small, small-sd (no middle block)", FOLDER, folder("bk-sdm-small")),
    Row("the same", SINGLE, single("bk-sdm-small")),
    Row("BK-SDM tiny, tiny-sd (three levels, no middle block)", FOLDER, folder("bk-sdm-tiny")),
    Row("the same", SINGLE, single("bk-sdm-tiny")),
    Row("any of these in half precision", f"{FOLDER}, `*.fp16.safetensors`", folder("sd1", variant("fp16", torch.float16))),
    Row("any of these in bfloat16", f"{FOLDER}, `*.bf16.safetensors`", folder("sd1", variant("bf16", torch.bfloat16))),
    Row("weights without averaging", f"{FOLDER}, `*.non_ema.safetensors`", folder("sd1", variant("non_ema"))),
    Row("weights in several files", f"{FOLDER}, shards with `*.safetensors.index.json`", folder("sd1", shards())),
    Row("a variant in several files", f"{FOLDER}, shards with an index of the variant", folder("sd1", shards("fp16"))),
    Row("names of 2022", FOLDER, folder("sd1", of_2022)),
    Row("a text encoder whose config has fewer layers than the file (\"clip skip\")", FOLDER, folder("sd1", fewer_layers)),
    Row("a text encoder with a projection", FOLDER, folder("sd1", projection)),
    Row("a tokenizer with added tokens (textual inversion)", FOLDER, folder("sd1", added_token)),
    Row("saved with another sampler", FOLDER, folder("sd1", euler)),
]  # fmt: skip


def table() -> str:
    """The rows as Markdown."""
    lines = ["| model | form |", "|---|---|", *(f"| {row.model} | {row.form} |" for row in ROWS)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
