"""The command line: python -m minip2p COMMAND. Bad input is one line on stderr and exit status 2; nothing is written then."""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from minip2p.edit_options import is_swap
from minip2p.edits import CROSS, SELF, Add, Edit, Reweight, Swap
from minip2p.errors import PromptError, RequestError
from minip2p.figures import explain, word_maps
from minip2p.figures.explorer import explore
from minip2p.golden import check as check_golden
from minip2p.inversion import METHODS, Inversion, invert
from minip2p.local_blend import LocalBlend
from minip2p.pipeline import GUIDANCE, STEPS, Result, StableDiffusion, side_by_side
from minip2p.recording import Recording
from minip2p.save import writable, write_whole

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIGURES = (".png", ".pdf", ".svg")
SMALLEST = 256  # pixels: smaller pictures are written enlarged, so that they can be looked at
ABOUT = "Prompt-to-Prompt editing on a Stable Diffusion written out by hand."
EXAMPLES = """examples:
  python -m minip2p generate "a red cat on a road" --seed 3 -o cat.png
  python -m minip2p attend "a red house on a road" -o maps.png
  python -m minip2p edit "a red house on a road" "a red castle on a road" -o edit.png --explain story.png
  python -m minip2p edit "a red house on a road" "a red house on a road at night" --reweight night=2 -o night.png
  python -m minip2p explore "a red house on a road" "a red castle on a road" -o page.html
  python -m minip2p invert photo.png "a cat on the grass" -o photo.inversion.safetensors
  python -m minip2p edit --inversion photo.inversion.safetensors "a cat on the grass" "a dog on the grass" -o edit.png
  python -m minip2p record "a red house on a road" -o house.recording.safetensors
  python -m minip2p edit --recording house.recording.safetensors "a red house on a road" "a red castle on a road" -o edit.png
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"minip2p: {message} (--help lists commands and options)", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status: 0, 2 for bad input, 130 if it was stopped."""
    args = build_parser().parse_args(arguments)
    try:
        return args.run(args) or 0
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"minip2p: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("minip2p: the device's memory is full: try --dtype float16, fewer targets, or --device cpu", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minip2p: stopped; nothing was written", file=sys.stderr)
        return 130


# ---------------------------------------------------------------- commands


def run_generate(args: argparse.Namespace) -> None:
    output = writable(args.output, PICTURES)
    result = generate(load(args), args, [args.prompt])
    save_pictures(output, result.images, args.zoom)
    print(f"{output}: {args.prompt!r}")


def run_attend(args: argparse.Namespace) -> None:
    output = writable(args.output, FIGURES)
    result = generate(load(args), args, [args.prompt], record=True)
    write_whole(output, word_maps([("picture", result, 0)]).savefig)
    print(f"{output}: {args.prompt!r}")


def run_edit(args: argparse.Namespace) -> None:
    output = writable(args.output, PICTURES)
    story = writable(args.explain, FIGURES) if args.explain else None
    if story and story.absolute() == output.absolute():
        raise RequestError(f"--explain and --output are both {output}: give the story a name of its own")
    if story and len(args.targets) > 1:
        raise RequestError(f"--explain shows one edit and there are {len(args.targets)} targets: give one")
    sd, prompts, change, saved = prepare_edit(args)
    result = generate(sd, args, prompts, edit=change, record=story is not None, **saved)
    if story:
        free = generate(sd, args, prompts, record=True, **saved)
        caption = f"from {args.inversion or args.recording}" if saved else ""
        write_whole(story, explain(free, result, change, caption).savefig)
        print(f"{story}: how this edit was made")
    save_pictures(output, result.images, args.zoom)
    print(f"{output}: from left to right {', '.join(repr(prompt) for prompt in prompts)}")


def run_explore(args: argparse.Namespace) -> None:
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


def run_invert(args: argparse.Namespace) -> None:
    output = writable(args.output, (".safetensors",))
    sd = load(args)
    inversion = invert(sd, args.picture, args.prompt, args.method, args.steps, args.guidance, crop=args.crop)
    inversion.save(output)
    print(f"{output}: {args.picture} as {args.prompt!r}, {args.method}, {inversion.nfe} network evaluations")


def run_record(args: argparse.Namespace) -> None:
    output = writable(args.output, (".safetensors",))
    check_seed(args, args.inversion)
    sd = load(args)
    inversion = Inversion.load(args.inversion) if args.inversion else None
    sd.record(args.prompt, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, inversion=inversion).save(output)
    print(f"{output}: {args.prompt!r}, {output.stat().st_size / 1e6:.0f} MB")


def run_check(args: argparse.Namespace) -> int:
    lines, passed = check_golden(args.weights, args.device)
    print("\n".join(lines))
    return 0 if passed else 1


# ---------------------------------------------------------------- what the commands share


def prepare_edit(args: argparse.Namespace) -> tuple[StableDiffusion, list[str], Edit, dict]:
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


def make_edit(sd: StableDiffusion, args: argparse.Namespace, prompts: list[str]) -> Edit:
    """Swap or Add, as asked or as the prompts suggest, then the weights on top of it."""
    blend = LocalBlend(sd.tokenizer, prompts, args.blend.split(",")) if args.blend is not None else None
    weights: dict[str, float] = {}
    for word, weight in map(read_weight, args.reweight):
        if word in weights:
            raise PromptError(f"--reweight gives {word!r} two weights, {weights[word]:g} and {weight:g}: leave out one of them")
        weights[word] = weight
    windows = (args.cross_replace_steps, args.self_replace_steps)
    if all(target == prompts[0] for target in prompts[1:]) and weights and not args.swap and not args.add:
        print(f"edit: {describe(weights)}")
        return Reweight(sd.tokenizer, prompts, weights, None, *windows, blend)
    swap = args.swap or not args.add and all(is_swap(sd.tokenizer, prompts[0], target) for target in prompts[1:])
    change = (Swap if swap else Add)(sd.tokenizer, prompts, *windows, blend)
    print(f"edit: {', '.join(filter(None, ['swap' if swap else 'add', describe(weights)]))}")
    return Reweight(sd.tokenizer, prompts, weights, base=change) if weights else change


def describe(weights: dict[str, float]) -> str:
    return ", ".join(f"{word} x {weight:g}" for word, weight in weights.items())


def read_weight(text: str) -> tuple[str, float]:
    """WORD=NUMBER as the two."""
    word, _, number = text.rpartition("=")
    try:
        return word, float(number)
    except ValueError:
        raise RequestError(f"--reweight {text!r} is not WORD=NUMBER, such as night=2") from None


def check_seed(args: argparse.Namespace, file: str | None) -> None:
    """RequestError for a seed beside a file that brings the noise."""
    if file and args.seed is not None:
        raise RequestError(f"--seed {args.seed} has no effect, because the noise is in {file}: leave one of them out")


def refuse_edit_options(args: argparse.Namespace) -> None:
    """RequestError for an option of an edit where there is no target."""
    given = {name: getattr(args, name) for name in ("swap", "add", "reweight", "blend", "inversion", "recording")}
    for name, value in given.items():
        if value:
            raise RequestError(f"--{name} needs an edit and there is one prompt: give a target prompt too")


def load(args: argparse.Namespace) -> StableDiffusion:
    if args.weights == TOY and not TOY.is_dir():
        raise RequestError(
            "there is no model here, because the toy is not part of the installed package: give --weights a folder or a "
            ".safetensors file, or run the command in a clone of the repository"
        )
    return StableDiffusion.load(args.weights, args.device, args.dtype, args.prediction_type)


def generate(sd: StableDiffusion, args: argparse.Namespace, prompts: list[str], **options) -> Result:
    return sd.generate(prompts, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, **options)


def save_pictures(path: Path, pictures: list[Image.Image], zoom: int | None) -> None:
    """Writes the pictures side by side, enlarged by a whole number; by default small ones to at least 256 pixels a side."""
    sheet = side_by_side(pictures)
    zoom = max(1, -(-SMALLEST // min(pictures[0].size))) if zoom is None else zoom
    if zoom < 1:
        raise RequestError(f"--zoom is {zoom}: give a whole number from 1 up")
    write_whole(path, sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save)


# ---------------------------------------------------------------- options


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options and help texts."""
    parser = Parser(
        prog="python -m minip2p", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, parser_class=Parser, metavar="COMMAND")

    def command(name: str, run, help_text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.set_defaults(run=run)
        added.add_argument(
            "--weights", default=TOY, help="a folder in diffusers' layout or a .safetensors file (default: our toy)"
        )
        added.add_argument("--device", help="cuda, mps or cpu (default: the first that is available)")
        return added

    added = command("generate", run_generate, "generate the picture of a prompt")
    added.add_argument("prompt")
    add_sampling(added, "the picture: .png, .jpg or .webp")
    add_zoom(added)

    added = command("attend", run_attend, "show which pixels attend to each word of a prompt")
    added.add_argument("prompt")
    add_sampling(added, "the figure: .png, .pdf or .svg")

    added = command("edit", run_edit, "edit a picture by editing its prompt")
    add_edit(added, targets="+")
    add_sampling(added, "source and edited pictures side by side: .png, .jpg or .webp", saved="the inversion's or recording's")
    add_zoom(added)
    added.add_argument("--explain", metavar="FILE", help="also write a figure of how the edit was made: .png, .pdf or .svg")

    added = command("explore", run_explore, "write a page on which to explore the attention maps of a prompt or an edit")
    add_edit(added, targets="*")
    add_sampling(added, "the page: .html", saved="the inversion's or recording's")

    added = command("invert", run_invert, "find the noise from which the model generates a picture, to edit it")
    added.add_argument("picture", help="the picture; it is cropped and resized to the model's size")
    added.add_argument("prompt", help="a description of the picture")
    added.add_argument("--method", choices=METHODS, default="null-text", help="of the inversion (default: null-text)")
    added.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="in pixels, cut out first")
    add_sampling(added, "the inversion: .safetensors", seed=False)

    added = command("record", run_record, "keep a source's run, so that each edit of it runs only its targets")
    added.add_argument("prompt")
    added.add_argument("--inversion", metavar="FILE", help="record the picture of a file that `invert` wrote")
    add_sampling(added, "the recording: .safetensors", saved="the inversion's")

    command("check", run_check, "compare a real Stable Diffusion with pixel values that diffusers publishes")
    return parser


def add_sampling(added: argparse.ArgumentParser, output: str, saved: str = "", seed: bool = True) -> None:
    """Precision, steps, guidance, seed and output. saved: whose steps and guidance are taken if there is a saved run."""
    added.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on cuda, else float32)")
    added.add_argument("--prediction-type", choices=("epsilon", "v_prediction"), help="of a single file that does not say it")
    default = f", or {saved}" if saved else ""
    added.add_argument("--steps", type=int, default=None if saved else STEPS, help=f"denoising steps (default: {STEPS}{default})")
    added.add_argument(
        "--guidance", type=float, default=None if saved else GUIDANCE,
        help=f"the weight of classifier-free guidance (default: {GUIDANCE}{default})",
    )  # fmt: skip
    if seed:
        added.add_argument("--seed", type=int, help="of the initial noise (default: 0)")
    added.add_argument("-o", "--output", required=True, metavar="FILE", help=output)


def add_zoom(added: argparse.ArgumentParser) -> None:
    added.add_argument("--zoom", type=int, metavar="N", help=f"enlarge pictures N times (default: to {SMALLEST} pixels a side)")


def add_edit(added: argparse.ArgumentParser, targets: str) -> None:
    """Prompts and options of an edit."""
    added.add_argument("source", help="the prompt of the picture")
    added.add_argument("targets", nargs=targets, metavar="target", help="the prompt with words swapped, added or dropped")
    kind = added.add_mutually_exclusive_group()
    kind.add_argument("--swap", action="store_true", help="new words take the maps of old ones (default where that is clear)")
    kind.add_argument("--add", action="store_true", help="new words keep their own maps")
    added.add_argument(
        "--reweight", action="append", default=[], metavar="WORD=NUMBER", help="multiply a word's maps; repeatable"
    )
    for name, default, maps in (("cross", CROSS, "word maps"), ("self", SELF, "self-attention")):
        added.add_argument(
            f"--{name}-replace-steps", type=float, default=default, metavar="SHARE",
            help=f"the share of the steps with the source's {maps} (default: {default})",
        )  # fmt: skip
    added.add_argument("--blend", metavar="WORD[,WORD]", help="change the picture only where these words are attended to")
    added.add_argument("--inversion", metavar="FILE", help="edit the picture of a file that `invert` wrote")
    added.add_argument("--recording", metavar="FILE", help="run only the targets, from a file that `record` wrote")


if __name__ == "__main__":
    sys.exit(main())
