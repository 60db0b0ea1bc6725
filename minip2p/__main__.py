"""The command line: python -m minip2p generate | edit | attend | invert | record. Bad input: one line on stderr, exit 2."""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from minip2p import edit_plots, plots
from minip2p.align import is_swap
from minip2p.blend import LocalBlend
from minip2p.edits import Add, Edit, Reweight, Swap
from minip2p.errors import PromptError
from minip2p.files import writable, write_whole
from minip2p.inversion import METHODS, Inversion
from minip2p.inversion import invert as invert_picture
from minip2p.pipeline import Result, StableDiffusion
from minip2p.recording import Recording

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FIGURES = (".png", ".pdf", ".svg")
EXAMPLES = """examples:
  python -m minip2p generate "a red cat on a road" --seed 3 -o cat.png
  python -m minip2p edit "a red house on a road" "a red castle on a road" -o edit.png
  python -m minip2p edit "a red house on a road" "a red house on a road at night" --reweight night=2 -o night.png
  python -m minip2p edit "a red house on a road" "a red castle on a road" -o edit.png --explain story.png
  python -m minip2p attend "a red house on a road" -o maps.png
  python -m minip2p invert photo.png "a cat on the grass" -o photo.inversion.safetensors
  python -m minip2p edit --inversion photo.inversion.safetensors "a cat on the grass" "a dog on the grass" -o edit.png
  python -m minip2p record "a red house on a road" -o house.recording.safetensors
  python -m minip2p edit --recording house.recording.safetensors "a red house on a road" "a red castle on a road" -o edit.png
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        print(f"minip2p: {message} (--help shows what can be said)", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: list[str] | None = None) -> int:
    """The exit status of one command: 0, or 2 after one line on stderr that says what was wrong."""
    args = build_parser().parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"minip2p: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError:
        print("minip2p: the device's memory is full: try --dtype float16, fewer targets, or --device cpu", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minip2p: stopped; nothing was written", file=sys.stderr)
        return 130
    return 0


def generate(args: argparse.Namespace) -> None:
    output = writable(args.output, PICTURES)
    result = run(load(args), args, [args.prompt])
    save_pictures(output, result.images)
    print(f"{output}: {args.prompt!r}")


def edit(args: argparse.Namespace) -> None:
    """Source and targets side by side; every target is edited from the same source."""
    output = writable(args.output, PICTURES)
    page = writable(args.explain, FIGURES) if args.explain else None
    if page and page.absolute() == output.absolute():
        raise PromptError(f"--explain and --output are both {output}: give the page a name of its own")
    file = args.inversion or args.recording
    check_seed(args, file)
    if page and len(args.targets) > 1:
        raise PromptError(f"--explain tells the story of one edit and there are {len(args.targets)} targets: give one")
    sd = load(args)
    prompts = [args.source, *args.targets]
    change = make_edit(sd, args, prompts)
    inversion = Inversion.load(args.inversion) if args.inversion else None
    recording = Recording.load(args.recording).to(sd.device) if args.recording else None
    kept = {"inversion": inversion, "recording": recording}
    result = run(sd, args, prompts, edit=change, record=page is not None, **kept)
    if page:
        free = run(sd, args, prompts, record=True, **kept)
        begun = f"from {file}" if file else f"seed {args.seed or 0}"
        caption = f"{begun}, {len(result.maps.tokens())} steps; maps: {plots.layers_of(result)}"
        write_whole(page, edit_plots.explain(free, result, change, caption).savefig)
        print(f"{page}: the story of this edit")
    save_pictures(output, result.images)
    print(f"{output}: from left to right {', '.join(repr(prompt) for prompt in prompts)}")


def attend(args: argparse.Namespace) -> None:
    """The picture, and where each word of its prompt was looked at."""
    output = writable(args.output, FIGURES)
    result = run(load(args), args, [args.prompt], record=True)
    caption = f"{args.prompt!r}, seed {args.seed or 0}, {args.steps} steps; {plots.layers_of(result)}"
    figure = plots.word_maps([("picture", result.images[0], result.maps, 0)], caption)
    write_whole(output, figure.savefig)
    print(f"{output}: {args.prompt!r}")


def invert(args: argparse.Namespace) -> None:
    """A photograph becomes a file from which `edit --inversion` starts."""
    output = writable(args.output, (".safetensors",))
    sd = load(args)
    inversion = invert_picture(sd, args.picture, args.prompt, args.method, args.steps, args.guidance, crop=args.crop)
    inversion.save(output)
    print(f"{output}: {args.picture} as {args.prompt!r}, {args.method}, {inversion.evaluations} network evaluations")


def record(args: argparse.Namespace) -> None:
    """A prompt's run becomes a file from which `edit --recording` starts: each edit then runs its targets alone."""
    output = writable(args.output, (".safetensors",))
    check_seed(args, args.inversion)
    sd = load(args)
    inversion = Inversion.load(args.inversion) if args.inversion else None
    sd.record(args.prompt, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, inversion=inversion).save(output)
    print(f"{output}: {args.prompt!r}, {output.stat().st_size / 1e6:.0f} MB")


def make_edit(sd: StableDiffusion, args: argparse.Namespace, prompts: list[str]) -> Edit:
    """Swap or Add, as asked or as the prompts suggest, then weights and blend on top."""
    swap = args.swap or not args.add and all(is_swap(sd.tokenizer, prompts[0], target) for target in prompts[1:])
    blend = LocalBlend(sd.tokenizer, prompts, args.blend.split(",")) if args.blend is not None else None
    kind = Swap if swap else Add
    change = kind(sd.tokenizer, prompts, args.cross_replace_steps, args.self_replace_steps, blend)
    weights: dict[str, float] = {}
    for word, number in map(read_weight, args.reweight):
        if word in weights:
            raise PromptError(f"--reweight gives {word!r} two weights, {weights[word]:g} and {number:g}: leave out one of them")
        weights[word] = number
    print(f"edit: {kind.__name__.lower()}{''.join(f', {word} x {number:g}' for word, number in weights.items())}")
    return Reweight(sd.tokenizer, prompts, weights, base=change) if weights else change


def read_weight(text: str) -> tuple[str, float]:
    """WORD=NUMBER as the two it is."""
    word, _, number = text.rpartition("=")
    try:
        return word, float(number)
    except ValueError:
        raise PromptError(f"--reweight {text!r} is not WORD=NUMBER, such as night=2") from None


def check_seed(args: argparse.Namespace, file: str | None) -> None:
    if file and args.seed is not None:
        raise PromptError(f"--seed {args.seed} has no say: the noise is the one in {file}; leave out one of the two")


def load(args: argparse.Namespace) -> StableDiffusion:
    return StableDiffusion.load(args.weights, args.device, args.dtype)


def run(sd: StableDiffusion, args: argparse.Namespace, prompts: list[str], **options) -> Result:
    return sd.generate(prompts, seed=args.seed or 0, steps=args.steps, guidance=args.guidance, **options)


def save_pictures(path: Path, pictures: list[Image.Image]) -> None:
    """Side by side, pixel for pixel."""
    width, height = pictures[0].size
    sheet = Image.new("RGB", (width * len(pictures), height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i * width, 0))
    write_whole(path, sheet.save)


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options and help."""
    parser = Parser(prog="python -m minip2p", description=__doc__.split(".")[0], epilog=EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, parser_class=Parser, metavar="COMMAND")

    def command(function, help_text: str, output: str) -> argparse.ArgumentParser:
        added = commands.add_parser(function.__name__, help=help_text, description=help_text)
        added.set_defaults(run=function)
        added.add_argument(
            "--weights", default=TOY, help="a folder in diffusers' layout or a .safetensors file (default: our toy)"
        )
        added.add_argument("--device", help="cuda, mps or cpu (default: the first that is there)")
        added.add_argument("--dtype", help="float32, float16 or bfloat16 (default: float16 on cuda, else float32)")
        added.add_argument("--steps", type=int, default=50, help="denoising steps (default: 50)")
        added.add_argument("--guidance", type=float, default=7.5, help="how strongly to follow the prompt (default: 7.5)")
        seed = "taken as everywhere; an inversion draws no noise" if function is invert else "of the starting noise (default: 0)"
        added.add_argument("--seed", type=int, help=seed)
        added.add_argument("-o", "--output", required=True, metavar="FILE", help=output)
        return added

    added = command(generate, "a picture of a prompt", "the picture, .png, .jpg or .webp")
    added.add_argument("prompt")

    added = command(edit, "edit a picture by editing its prompt", "source and edited pictures side by side")
    added.add_argument("source", help="the prompt of the picture")
    added.add_argument("targets", nargs="+", metavar="target", help="the prompt with words swapped, added or dropped")
    which = added.add_mutually_exclusive_group()
    which.add_argument(
        "--swap", action="store_true", help="new words take the places of old ones (default where it is clear which)"
    )
    which.add_argument("--add", action="store_true", help="new words bring their own places")
    added.add_argument(
        "--reweight", action="append", default=[], metavar="WORD=NUMBER", help="make a word count more or less; repeatable"
    )
    added.add_argument(
        "--cross-replace-steps", type=float, default=0.8, metavar="SHARE", help="of the steps, with the source's word maps (0.8)"
    )
    added.add_argument(
        "--self-replace-steps", type=float, default=0.4, metavar="SHARE", help="of the steps, with its self-attention (0.4)"
    )
    added.add_argument("--blend", metavar="WORD[,WORD]", help="change the picture only where these words look")

    added.add_argument("--explain", metavar="FILE", help="also draw the edit's whole story on a page: .png, .pdf or .svg")
    added.add_argument(
        "--inversion", metavar="FILE", help="edit the photograph that `invert` wrote this for, with its steps and guidance"
    )
    added.add_argument("--recording", metavar="FILE", help="run the targets alone, from the source that `record` wrote this for")
    added.set_defaults(steps=None, guidance=None)  # 50 and 7.5, or those of the inversion or recording

    added = command(attend, "show where each word of a prompt is looked at", "the figure, .png, .pdf or .svg")
    added.add_argument("prompt")

    added = command(invert, "find the noise that makes a photograph, to edit it", "the inversion, .safetensors")
    added.add_argument("picture", help="the photograph; it is cut and resized to the model's size")
    added.add_argument("prompt", help="what it shows")
    added.add_argument(
        "--method", choices=METHODS, default="null-text", help="how to mend what guidance spoils (default: null-text)"
    )
    added.add_argument(
        "--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="in pixels, to cut out first"
    )

    added = command(record, "keep a source's run, so that each edit of it costs half", "the recording, .safetensors")
    added.add_argument("prompt")
    added.add_argument("--inversion", metavar="FILE", help="record the photograph that `invert` wrote this for")
    added.set_defaults(steps=None, guidance=None)
    return parser


if __name__ == "__main__":
    sys.exit(main())
