"""The command line: python -m minip2p COMMAND. Bad input is one line on stderr and exit status 2; nothing is written then."""

import os
import sys
from argparse import Namespace
from pathlib import Path

from PIL import Image

from minip2p.edit_options import is_swap
from minip2p.edits import Add, Edit, Reweight, Swap
from minip2p.errors import PromptError, RequestError
from minip2p.figures import explain, word_maps
from minip2p.figures.explorer import explore
from minip2p.golden import check as check_golden
from minip2p.inversion import Inversion, invert
from minip2p.local_blend import LocalBlend
from minip2p.options import SMALLEST, TOY, build_parser
from minip2p.pipeline import StableDiffusion
from minip2p.recording import Recording
from minip2p.result import Result, side_by_side
from minip2p.save import writable, write_whole

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIGURES = (".png", ".pdf", ".svg")
WINDOWS = ("cross_replace_steps", "self_replace_steps")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for bad input, 130 if it was stopped."""
    args = build_parser().parse_args(arguments)
    try:
        return COMMANDS[args.command](args) or 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"minip2p: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        said = str(error).lower()
        if isinstance(error, RuntimeError) and "out of memory" not in said and "alloc" not in said:
            raise
        print("minip2p: the memory is full: give fewer targets; on a GPU --dtype float16 or --device cpu helps too", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minip2p: stopped; nothing was written", file=sys.stderr)
        return 130


# ---------------------------------------------------------------- commands


def run_generate(args: Namespace) -> None:
    """Writes the picture of a prompt."""
    output = writable(args.output, PICTURES)
    result = generate(load(args), args, [args.prompt])
    save_pictures(output, result.images, args.zoom)
    print(f"{output}: {args.prompt!r}")


def run_attend(args: Namespace) -> None:
    """Writes the figure of a prompt's attention maps."""
    output = writable(args.output, FIGURES)
    result = generate(load(args), args, [args.prompt], record=True)
    write_whole(output, word_maps([("picture", result, 0)]).savefig)
    print(f"{output}: {args.prompt!r}")


def run_edit(args: Namespace) -> None:
    """Writes source and edited pictures side by side, and with --explain a figure of how the edit was made."""
    output = writable(args.output, PICTURES)
    story = writable(args.explain, FIGURES) if args.explain else None
    if story and same_file(story, output):
        raise RequestError(f"--explain and --output are both {output}: give the story a name of its own")
    if story and len(args.targets) > 1:
        raise RequestError(f"--explain shows one edit and there are {len(args.targets)} targets: give one")
    sd, prompts, change, saved = prepare_edit(args)
    result = generate(sd, args, prompts, edit=change, record=story is not None, **saved)
    if story:
        free = generate(sd, args, prompts, record=True, **saved)
        caption = f"from {args.inversion or args.recording}" if saved else ""
        figure = explain(free, result, change, caption)
    save_pictures(output, result.images, args.zoom)
    print(f"{output}: from left to right {', '.join(repr(prompt) for prompt in prompts)}")
    if story:
        write_whole(story, figure.savefig)
        print(f"{story}: how this edit was made")


def run_explore(args: Namespace) -> None:
    """Writes the explorer page of a prompt or an edit."""
    output = writable(args.output, (".html",))
    if args.targets:
        sd, prompts, change, saved = prepare_edit(args)
    else:
        refuse_edit_options(args)
        sd, prompts, change, saved = load(args), [args.source], None, {}
    result = generate(sd, args, prompts, edit=change, record="all", **saved)
    page = explore(sd, result, change)
    write_whole(output, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"{output}: open it in a browser ({output.stat().st_size / 1e3:.0f} kB)")


def run_invert(args: Namespace) -> None:
    """Writes the inversion of a picture."""
    output = writable(args.output, (".safetensors",))
    sd = load(args)
    inversion = invert(sd, args.picture, args.prompt, args.method, args.steps, args.guidance, crop=args.crop)
    inversion.save(output)
    print(f"{output}: {args.picture} as {args.prompt!r}, {args.method}, {inversion.nfe} network evaluations")


def run_record(args: Namespace) -> None:
    """Writes the recording of a prompt, or of an inverted picture."""
    output = writable(args.output, (".safetensors",))
    if args.inversion and same_file(args.inversion, output):
        raise RequestError(f"--inversion and --output are both {output}: give the recording a name of its own")
    check_seed(args, args.inversion)
    sd = load(args)
    inversion = Inversion.load(args.inversion) if args.inversion else None
    sd.record(args.prompt, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, inversion=inversion).save(output)
    print(f"{output}: {args.prompt!r}, {output.stat().st_size / 1e6:.0f} MB")


def run_check(args: Namespace) -> int:
    """Prints pixel values beside the published ones; exit status 1 if they differ."""
    lines, passed = check_golden(args.weights, args.device)
    print("\n".join(lines))
    return 0 if passed else 1


COMMANDS = {
    "generate": run_generate, "attend": run_attend, "edit": run_edit, "explore": run_explore, "invert": run_invert,
    "record": run_record, "check": run_check,
}  # fmt: skip


# ---------------------------------------------------------------- what the commands share


def prepare_edit(args: Namespace) -> tuple[StableDiffusion, list[str], Edit, dict]:
    """The model, the prompts, the edit, and the inversion or recording as arguments of `generate`."""
    check_seed(args, args.inversion or args.recording)
    sd = load(args)
    prompts = [args.source, *args.targets]
    saved = {}
    if args.inversion:
        saved["inversion"] = Inversion.load(args.inversion)
    if args.recording:
        saved["recording"] = Recording.load(args.recording).to(sd.device)
    return sd, prompts, make_edit(sd, args, prompts), saved


def make_edit(sd: StableDiffusion, args: Namespace, prompts: list[str]) -> Edit:
    """Swap or Add, as asked or as the prompts suggest, then the weights on top of it."""
    blend = LocalBlend(sd.tokenizer, prompts, args.blend.split(",")) if args.blend is not None else None
    weights: dict[str, float] = {}
    for word, weight in map(read_weight, args.reweight):
        if word in weights:
            raise PromptError(f"--reweight gives {word!r} two weights, {weights[word]:g} and {weight:g}: leave out one of them")
        weights[word] = weight
    windows = {name: getattr(args, name) for name in WINDOWS if getattr(args, name) is not None}
    if all(target == prompts[0] for target in prompts[1:]) and weights and not args.swap and not args.add:
        print(f"edit: {describe(weights)}")
        return Reweight(sd.tokenizer, prompts, weights, blend=blend, **windows)
    swap = args.swap or not args.add and all(is_swap(sd.tokenizer, prompts[0], target) for target in prompts[1:])
    change = (Swap if swap else Add)(sd.tokenizer, prompts, blend=blend, **windows)
    print(f"edit: {', '.join(filter(None, ['swap' if swap else 'add', describe(weights)]))}")
    return Reweight(sd.tokenizer, prompts, weights, base=change) if weights else change


def describe(weights: dict[str, float]) -> str:
    """The weights as they are printed, such as "night x 2"."""
    return ", ".join(f"{word} x {weight:g}" for word, weight in weights.items())


def read_weight(text: str) -> tuple[str, float]:
    """WORD=NUMBER as the two."""
    word, _, number = text.rpartition("=")
    try:
        return word, float(number)
    except ValueError:
        raise RequestError(f"--reweight {text!r} is not WORD=NUMBER, such as night=2") from None


def check_seed(args: Namespace, file: str | None) -> None:
    """RequestError for a seed beside a file that brings the noise."""
    if file and args.seed is not None:
        raise RequestError(f"--seed {args.seed} has no effect, because the noise is in {file}: leave one of them out")


def refuse_edit_options(args: Namespace) -> None:
    """RequestError for an option of an edit where there is no target."""
    given = [name for name in ("swap", "add", "reweight") if getattr(args, name)]
    given += [name for name in ("blend", "inversion", "recording", *WINDOWS) if getattr(args, name) is not None]
    if given:
        raise RequestError(f"--{given[0].replace('_', '-')} needs an edit and there is one prompt: give a target prompt too")


def load(args: Namespace) -> StableDiffusion:
    """The model of --weights; RequestError if no model was named and none is installed."""
    if args.weights == TOY and not TOY.is_dir():
        raise RequestError(
            "there is no model here, because the toy is not part of the installed package: give --weights a folder or a "
            ".safetensors file, or run the command in a clone of the repository"
        )
    return StableDiffusion.load(args.weights, args.device, args.dtype, args.prediction_type)


def generate(sd: StableDiffusion, args: Namespace, prompts: list[str], **options) -> Result:
    """`sd.generate` with the sampling options of the command line."""
    return sd.generate(prompts, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, **options)


def same_file(one: str | Path, other: str | Path) -> bool:
    """True if both are names of the same file, which need not exist."""
    first, second = (Path(os.path.expanduser(path)).resolve() for path in (one, other))
    return first == second


def save_pictures(path: Path, pictures: list[Image.Image], zoom: int | None) -> None:
    """Writes the pictures side by side, enlarged by a whole number; by default small ones to at least 256 pixels a side."""
    sheet = side_by_side(pictures)
    zoom = max(1, -(-SMALLEST // min(pictures[0].size))) if zoom is None else zoom
    write_whole(path, sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save)


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # some consoles have no character for every prompt
    sys.exit(main())
