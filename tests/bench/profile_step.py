"""Where the time of one step of an edit goes, at Stable Diffusion 1.5's size with random weights. It is not a test.

    python -m tests.bench.profile_step               # float32 and bfloat16 on a CPU, float16 on a GPU; minutes, 6 GB of memory

Torch's profiler measures two prompts with guidance, so four rows of 64 x 64 latents, in a step that edits cross-attention and
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
from tests.bench.bench import PROMPTS, TOY, matmul_rate, seconds
from tests.bench.bench_null_text import random_unet

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


def flops() -> dict[str, float]:
    """Two per multiplication of a step, by kind."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        random_unet(UNetConfig(), torch.float32, "meta")(*(torch.empty(shape, device="meta") for shape in ((4, 4, 64, 64), (), (4, 77, 768))))
    counted: dict[str, float] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = MULTIPLY[str(operation).removeprefix("aten.")]
        counted[kind] = counted.get(kind, 0) + count
    return counted


@torch.no_grad()
def times(dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one step by kind of work, and of the whole step without the profiler ("clock")."""
    unet = random_unet(UNetConfig(), dtype, DEVICE)
    tokenizer = CLIPTokenizer(TOY / "tokenizer", context=77)
    edit = Swap(tokenizer, PROMPTS).prepare(torch.device(DEVICE)).at(0, 50)
    z, text = (torch.randn(shape, device=DEVICE, dtype=dtype) for shape in ((4, 4, 64, 64), (4, 77, 768)))
    t = torch.tensor(500, device=DEVICE)
    clock = min(seconds(lambda: unet(z, t, text, edit, n_uncond=2), DEVICE) for _ in range(2))
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]) as profiled:
        unet(z, t, text, edit, n_uncond=2)
    spent: dict[str, float] = {"clock": clock}
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            own = (event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total) / 1e6
            spent[kind_of(event.key)] = spent.get(kind_of(event.key), 0) + own
    return spent


def report(dtype: torch.dtype) -> None:
    spent, counted, rate = times(dtype), flops(), matmul_rate(DEVICE, dtype)
    clock, best = spent.pop("clock"), sum(counted.values()) / rate
    total = sum(spent.values())
    print(f"\none step of an edit, {dtype}, {DEVICE}: {1e3 * clock:.1f} ms, {clock / best:.2f} x its multiplications ({1e3 * best:.1f} ms)")
    print(f"{'by the profiler':38}{'ms':>9}{'share':>8}{'multiplications, ms':>20}", flush=True)
    for kind, own in sorted(spent.items(), key=lambda item: -item[1]):
        least = f"{1e3 * counted[kind] / rate:20.1f}" if kind in counted else ""
        print(f"{kind:38}{1e3 * own:9.1f}{own / total:8.1%}{least}")
    print(f"{'(both kinds of attention together)':55}{1e3 * counted['attention'] / rate:20.1f}", flush=True)


def main() -> None:
    names = sys.argv[1:] or (["float16"] if DEVICE == "cuda" else ["float32", "bfloat16"])
    for name in names:
        report(getattr(torch, name))


if __name__ == "__main__":
    main()
