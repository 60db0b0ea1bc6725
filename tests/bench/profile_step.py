"""Where the time of one step of an edit goes, with random weights. It is not a test.

    python -m tests.bench.profile_step               # the toy's size; seconds
    python -m tests.bench.profile_step sd1           # Stable Diffusion 1.5's; minutes, 6 GB of memory

Torch's profiler measures two prompts with guidance, so four rows of latents, in a step that edits cross-attention and
self-attention. The last column is the time that the multiplications of a kind would take at the speed of a large matrix product.
Kinds without that column move memory.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from minip2p import Swap
from minip2p.tokenizer import CLIPTokenizer
from minip2p.unet import UNetConfig
from tests.bench import bench_null_text
from tests.bench.bench import PROMPTS, TOY, matmul_rate, seconds
from tests.bench.bench_null_text import random_unet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {"toy": (bench_null_text.TOY, 16, 32), "sd1": (UNetConfig(), 64, 77)}  # config, side of the latent, tokens
KINDS = {  # parts of the names of torch's operations; the first that fits decides
    "convolutions": ("conv",),
    "fused attention": ("scaled_dot_product", "flash_attention", "efficient_attention", "attention_forward"),
    "linear layers": ("addmm", "aten::mm", "linear"),
    "materialised maps": ("bmm", "softmax"),
    "norms": ("group_norm", "layer_norm"),
    "activations": ("silu", "gelu", "sigmoid"),
    "sums, products": ("aten::add", "aten::mul", "aten::sub", "aten::div", "aten::lerp"),
    "copies, changes of dtype or layout": ("copy", "cat", "clone", "index", "upsample", "fill", "contiguous"),
}
MULTIPLY = {"convolution": "convolutions", "addmm": "linear layers", "mm": "linear layers", "bmm": "attention"}


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def shapes(size: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the latents and of the text embedding."""
    config, side, tokens = SIZES[size]
    return (4, 4, side, side), (4, tokens, config.cross_attention_dim)


def flops(size: str) -> dict[str, float]:
    """Two per multiplication of a step, by kind."""
    z, text = (torch.empty(shape, device="meta") for shape in shapes(size))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        random_unet(SIZES[size][0], torch.float32, "meta")(z, torch.empty((), device="meta"), text)
    counted: dict[str, float] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = MULTIPLY[str(operation).removeprefix("aten.")]
        counted[kind] = counted.get(kind, 0) + count
    return counted


@torch.no_grad()
def times(size: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one step by kind of work, and of the whole step without the profiler ("clock")."""
    config, _, tokens = SIZES[size]
    unet = random_unet(config, dtype, DEVICE)
    edit = Swap(CLIPTokenizer(TOY / "tokenizer", tokens), PROMPTS).prepare(torch.device(DEVICE)).at(0, 50)
    z, text = (torch.randn(shape, device=DEVICE, dtype=dtype) for shape in shapes(size))
    t = torch.tensor(500, device=DEVICE)
    clock = min(seconds(lambda: unet(z, t, text, edit, n_uncond=2), DEVICE) for _ in range(20 if size == "toy" else 2))
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]) as profiled:
        unet(z, t, text, edit, n_uncond=2)
    spent: dict[str, float] = {"clock": clock}
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            own = (event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total) / 1e6
            spent[kind_of(event.key)] = spent.get(kind_of(event.key), 0) + own
    return spent


def report(size: str, dtype: torch.dtype) -> None:
    """Prints one table."""
    spent, counted, rate = times(size, dtype), flops(size), matmul_rate(DEVICE, dtype)
    clock, best = spent.pop("clock"), sum(counted.values()) / rate
    total = sum(spent.values())
    print(f"\none step of an edit, {size}, {dtype}, {DEVICE}: {1e3 * clock:.1f} ms,")
    print(f"{clock / best:.2f} x its multiplications ({1e3 * best:.1f} ms)")
    print(f"{'by the profiler':38}{'ms':>9}{'share':>8}{'multiplications, ms':>20}", flush=True)
    for kind, own in sorted(spent.items(), key=lambda item: -item[1]):
        least = f"{1e3 * counted[kind] / rate:20.1f}" if kind in counted else ""
        print(f"{kind:38}{1e3 * own:9.1f}{own / total:8.1%}{least}")
    print(f"{'(both kinds of attention together)':55}{1e3 * counted['attention'] / rate:20.1f}", flush=True)


def main() -> None:
    size, *names = sys.argv[1:] or ["toy"]
    if size not in SIZES:
        sys.exit(f"there is no size {size!r}: give toy or sd1, then dtypes")
    for name in names or (["float16"] if DEVICE == "cuda" else ["float32"] if size == "toy" else ["float32", "bfloat16"]):
        report(size, getattr(torch, name))


if __name__ == "__main__":
    main()
