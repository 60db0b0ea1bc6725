"""The command line's options and help texts."""

import argparse
import sys
from pathlib import Path

from minip2p.edits import CROSS, SELF
from minip2p.inversion import METHODS
from minip2p.pipeline import GUIDANCE, STEPS

TOY = Path(__file__).resolve().parent.parent / "weights" / "toy"
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
    """argparse's parser, which says what is wrong in one line."""

    def error(self, message: str):
        print(f"minip2p: {message} (--help lists commands and options)", file=sys.stderr)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options and help texts."""
    parser = Parser(
        prog="python -m minip2p", description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(title="commands", required=True, parser_class=Parser, metavar="COMMAND", dest="command")

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        """A command and the options that all commands have."""
        added = commands.add_parser(name, help=help_text, description=help_text)
        added.add_argument(
            "--weights", default=TOY, help="a folder in diffusers' layout or a .safetensors file (default: our toy)"
        )
        added.add_argument("--device", help="cuda, mps or cpu (default: the first that is available)")
        return added

    added = command("generate", "generate the picture of a prompt")
    added.add_argument("prompt")
    add_sampling(added, "the picture: .png, .jpg or .webp")
    add_zoom(added)

    added = command("attend", "show which pixels attend to each word of a prompt")
    added.add_argument("prompt")
    add_sampling(added, "the figure: .png, .pdf or .svg")

    added = command("edit", "edit a picture by editing its prompt")
    add_edit(added, targets="+")
    add_sampling(added, "source and edited pictures side by side: .png, .jpg or .webp", saved="the inversion's or recording's")
    add_zoom(added)
    added.add_argument("--explain", metavar="FILE", help="also write a figure of how the edit was made: .png, .pdf or .svg")

    added = command("explore", "write a page on which to explore the attention maps of a prompt or an edit")
    add_edit(added, targets="*")
    add_sampling(added, "the page: .html", saved="the inversion's or recording's")

    added = command("invert", "find the noise from which the model generates a picture, to edit it")
    added.add_argument("picture", help="the picture; it is cropped and resized to the model's size")
    added.add_argument("prompt", help="a description of the picture")
    added.add_argument("--method", choices=METHODS, default="null-text", help="of the inversion (default: null-text)")
    added.add_argument("--crop", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="in pixels, cut out first")
    add_sampling(added, "the inversion: .safetensors", seed=False)

    added = command("record", "keep a source's run, so that each edit of it runs only its targets")
    added.add_argument("prompt")
    added.add_argument("--inversion", metavar="FILE", help="record the picture of a file that `invert` wrote")
    add_sampling(added, "the recording: .safetensors", saved="the inversion's")

    command("check", "compare a real Stable Diffusion with pixel values that diffusers publishes")
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
    """How many times pictures are enlarged."""
    added.add_argument("--zoom", type=times, metavar="N", help=f"enlarge pictures N times (default: to {SMALLEST} pixels a side)")


def times(text: str) -> int:
    """A whole number from 1 to 64."""
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 64")
    return int(text)


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
            f"--{name}-replace-steps", type=float, metavar="SHARE",
            help=f"the share of the steps with the source's {maps} (default: {default})",
        )  # fmt: skip
    added.add_argument("--blend", metavar="WORD[,WORD]", help="change the picture only where these words are attended to")
    added.add_argument("--inversion", metavar="FILE", help="edit the picture of a file that `invert` wrote")
    added.add_argument("--recording", metavar="FILE", help="run only the targets, from a file that `record` wrote")
