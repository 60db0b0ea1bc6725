"""Where the time of one step of an edit goes, at Stable Diffusion 1.5's size with random weights: torch's profiler, by kind of work.

    python -m tests.bench.profile_step               # float32 and bfloat16 on a CPU, float16 on a GPU; minutes, 6 GB of memory

Two prompts with guidance, so four rows of 64 x 64 latents, in a step in which word maps and self-attention are both edited.
The second column of seconds is what the multiplications of a kind would take at the speed of a large matrix product; what has
none is moving memory. The profiler itself costs a little. Nothing here is a test.
"""

import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from minip2p import StableDiffusion, Swap
from minip2p.maps import Seam
from minip2p.unet import UNet, UNetConfig
from tests.bench.bench import PROMPTS, TOY, matmul_rate

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = {  # parts of the names of torch's operations, the first that fits
    "convolutions": ("conv",),
    "fused attention": ("scaled_dot_product", "flash_attention", "efficient_attention"),
    "linear layers": ("addmm", "aten::mm", "linear"),
    "maps written down": ("bmm", "softmax"),
    "norms": ("group_norm", "layer_norm"),
    "activations": ("silu", "gelu", "sigmoid"),
    "sums, products": ("aten::add", "aten::mul", "aten::sub", "aten::div", "aten::lerp"),
    "copies, changes of dtype or layout": ("copy", "cat", "clone", "index", "upsample", "fill", "contiguous"),
}
MULTIPLY = {"convolution": "convolutions", "addmm": "linear layers", "mm": "linear layers", "bmm": "attention"}


def kind_of(name: str) -> str:
    return next((kind for kind, parts in KINDS.items() if any(part in name for part in parts)), "other")


def network(dtype: torch.dtype, device: str) -> UNet:
    torch.set_default_dtype(dtype)  # so that the weights are never there in two precisions
    with torch.device(device):
        unet = UNet(UNetConfig()).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return unet


def flops() -> dict[str, float]:
    """Two for each multiplication of a step, by kind."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network(torch.float32, "meta")(*(torch.empty(shape, device="meta") for shape in ((4, 4, 64, 64), (), (4, 77, 768))))
    counted: dict[str, float] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = MULTIPLY[str(operation).removeprefix("aten.")]
        counted[kind] = counted.get(kind, 0) + count
    return counted


@torch.no_grad()
def times(dtype: torch.dtype) -> dict[str, float]:
    """Seconds of one step, by kind of work."""
    unet = network(dtype, DEVICE)
    edit = Swap(StableDiffusion.load(TOY, "cpu").tokenizer, PROMPTS).to(DEVICE)
    seam = Seam(edit.at(0, 50), [], 2)
    z, text = (torch.randn(shape, device=DEVICE, dtype=dtype) for shape in ((4, 4, 64, 64), (4, 77, 768)))
    t = torch.tensor(500, device=DEVICE)
    unet(z, t, text, edit=seam)  # the warm-up
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE == "cuda" else [])]) as profiled:
        unet(z, t, text, edit=seam)
    seconds: dict[str, float] = {}
    for event in profiled.key_averages():
        if event.key.startswith("aten::"):
            spent = (event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total) / 1e6
            seconds[kind_of(event.key)] = seconds.get(kind_of(event.key), 0) + spent
    return seconds


def report(dtype: torch.dtype) -> None:
    spent, counted, rate = times(dtype), flops(), matmul_rate(DEVICE, dtype)
    total, best = sum(spent.values()), sum(counted.values()) / rate
    print(f"\none step of an edit, {dtype}, {DEVICE}: {total:.2f} s, {total / best:.2f} x its multiplications ({best:.2f} s)")
    print(f"{'':38}{'seconds':>9}{'share':>8}{'multiplications, s':>20}", flush=True)
    for kind, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        least = f"{counted[kind] / rate:20.2f}" if kind in counted else ""
        print(f"{kind:38}{seconds:9.2f}{seconds / total:8.1%}{least}")
    print(f"{'(both kinds of attention together)':55}{counted['attention'] / rate:20.2f}", flush=True)


def main() -> None:
    names = sys.argv[1:] or (["float16"] if DEVICE == "cuda" else ["float32", "bfloat16"])
    for name in names:
        report(getattr(torch, name))


if __name__ == "__main__":
    main()
