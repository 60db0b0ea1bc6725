"""Fetch a model into weights/: python -m weights.fetch [MODEL] (or `make weights MODEL=...`). Without MODEL: 1.5.

huggingface_hub downloads, shows the progress, and resumes a file whose connection broke; after a stop, complete files are
kept and an incomplete one begins again. HF_ENDPOINT names another server with the same layout, such as a mirror.
"""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

HERE = Path(__file__).resolve().parent
LICENCE = "CreativeML OpenRAIL-M, https://huggingface.co/spaces/CompVis/stable-diffusion-license"
WEIGHTS = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
VOCABULARY = ("vocab.json", "merges.txt")
CONFIGS = (
    "model_index.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json",
    *(f"tokenizer/{name}" for name in VOCABULARY),
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A repository on the Hugging Face hub, and which of its files to fetch."""

    repository: str
    description: str
    licence: str = LICENCE
    half: bool = True  # float16 weights where the repository has them: half the size, which is enough for pictures

    @property
    def folder(self) -> Path:
        return HERE / self.repository.split("/")[-1]


MODELS = {
    "1.5": Model("stable-diffusion-v1-5/stable-diffusion-v1-5", "Stable Diffusion 1.5, float16, 2.1 GB"),
    "1.4": Model("CompVis/stable-diffusion-v1-4", "the model of the paper's authors, float32, 4.3 GB", half=False),
    "bk-sdm-tiny": Model("nota-ai/bk-sdm-tiny", "1.4 distilled to a UNet of 0.33 billion parameters, about 1 to 2 GB"),
}


def main(arguments: list[str]) -> int:
    """The exit status: 0, 2 after one line on stderr that says what went wrong, or 130 after Ctrl-C."""
    name = arguments[0] if arguments and arguments[0] else "1.5"
    if name not in MODELS or len(arguments) > 1:
        print(f"weights: MODEL is {' '.join(arguments)!r}: use one of {', '.join(MODELS)}", file=sys.stderr)
        return 2
    model = MODELS[name]
    print(f"{model.repository} ({model.description}) -> {model.folder}\nIts licence, not ours: {model.licence}", flush=True)
    try:
        fetch(model)
    except KeyboardInterrupt:
        print(f"\nweights: stopped: run `make weights MODEL={name}` again, complete files are kept", file=sys.stderr)
        return 130
    except Exception as error:  # the client raises its own kinds of error, and those of two libraries below it
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        print(f"\nweights: {cause}: run `make weights MODEL={name}` again, complete files are kept", file=sys.stderr)
        return 2
    print(f"complete. Try: make lesson3 WEIGHTS={os.path.relpath(model.folder)}")
    return 0


def fetch(model: Model) -> None:
    """Download the files of a model that are not there yet, and copy its vocabulary to weights/tokenizer for single files."""
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    files = choose(api.list_repo_files(model.repository), model)
    api.snapshot_download(model.repository, allow_patterns=files, local_dir=model.folder)
    missing = [name for name in files if not (model.folder / name).is_file()]
    if missing:
        raise ValueError(f"{model.repository} did not send {missing[0]}")
    (HERE / "tokenizer").mkdir(exist_ok=True)
    for name in VOCABULARY:
        shutil.copyfile(model.folder / "tokenizer" / name, HERE / "tokenizer" / name)


def choose(published: list[str], model: Model) -> list[str]:
    """The files to fetch: the configs, the vocabulary, and one safetensors file for each network."""
    files = list(CONFIGS)
    for stem in WEIGHTS:
        names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors"]
        files.append(next((name for name in sorted(names, reverse=not model.half) if name in published), names[0]))
    missing = [name for name in files if name not in published]
    if missing:
        raise ValueError(f"{model.repository} has no {missing[0]}")
    return files


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
