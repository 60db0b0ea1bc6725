"""The time and memory of one step of null-text inversion, ours and as the authors published it. It is not a test.

    python -m tests.bench.bench_null_text            # the toy's size: about a minute
    python -m tests.bench.bench_null_text sd1        # Stable Diffusion 1.5's size, random weights: minutes, 12 GiB of memory
    python -m tests.bench.bench_null_text sd1 cuda   # the same on a GPU, with latents of 64 x 64

A step is one conditional evaluation, the updates of the embedding, and the DDIM step. The published way runs through the same
UNet, but it materialises all attention maps in float32, computes the gradients of all weights, and evaluates both halves of
guidance again for the DDIM step. All ways take turns in one process, and the table has the median of the ratios of a round. Peak
memory is measured in a process of its own for each way. On a CPU the seconds are processor time, summed over threads.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from minip2p.attention import AttentionEdit
from minip2p.inversion import optimise_null_text
from minip2p.scheduler import Schedule, ddim_step
from minip2p.unet import UNet, UNetConfig

WAYS = ("published", "ours", "ours, checkpointing", "ours, bfloat16", "ours, float16")
GUIDANCE, LR = 7.5, 0.01


@dataclass(frozen=True)
class Size:
    unet: UNetConfig
    side: int  # of the latent
    tokens: int
    updates: int
    rounds: int  # of which the median is taken


TOY = UNetConfig(
    sample_size=16, block_out_channels=(64, 128, 128), down_attention=(True, True, False), layers_per_block=1,
    cross_attention_dim=128, heads=(2, 2, 2),
)  # fmt: skip
SIZES = {
    "cpu": {"toy": Size(TOY, 16, 32, 10, 9), "sd1": Size(UNetConfig(), 32, 77, 2, 1)},
    "cuda": {"toy": Size(TOY, 16, 32, 10, 9), "sd1": Size(UNetConfig(), 64, 77, 10, 5)},
}


def random_unet(config: UNetConfig, dtype: torch.dtype, device: str) -> UNet:
    """Built in this dtype, so that the weights are never in memory in two precisions."""
    torch.set_default_dtype(dtype)
    with torch.device(device):
        unet = UNet(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return unet


class EveryMap(AttentionEdit):
    """Makes every layer materialise its maps."""

    def wants(self, site) -> bool:
        return True


def published(sd, pivot, text, guidance, updates, lr) -> None:
    """The authors' step, from their release: every weight requires a gradient."""
    [(t, a_from, a_to)], edit = sd.schedule.levels(1), EveryMap()
    z, target, null = pivot[1:], pivot[:1], sd.encode_text("").clone().requires_grad_()
    adam = torch.optim.Adam([null], lr)
    with torch.no_grad():
        cond = sd.unet(z, t, text, edit)
    for _ in range(updates):
        uncond = sd.unet(z, t, null, edit)
        loss = F.mse_loss(ddim_step(z, uncond + guidance * (cond - uncond), a_from, a_to), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()  # they compare it with their threshold
    with torch.no_grad():
        uncond, cond = sd.unet(torch.cat([z, z]), t, torch.cat([null, text]), edit).chunk(2)
        ddim_step(z, uncond + guidance * (cond - uncond), a_from, a_to)


def dtype_of(way: str) -> torch.dtype:
    return getattr(torch, way.removeprefix("ours, ")) if way.endswith("float16") else torch.float32


def step_of(way: str, size: Size, unet: UNet, device: str):
    """A function that runs one step of inversion this way."""
    torch.manual_seed(0)
    empty, text = torch.randn(2, 1, size.tokens, size.unet.cross_attention_dim, device=device).to(dtype_of(way))
    sd = SimpleNamespace(unet=unet, schedule=Schedule(), dtype=dtype_of(way), encode_text=lambda prompt: empty)
    pivot = torch.randn(2, 4, size.side, size.side, device=device)

    def step():
        unet.requires_grad_(way == "published")
        unet.zero_grad()
        if way == "published":
            return published(sd, pivot, text, GUIDANCE, size.updates, LR)
        with torch.no_grad():
            return optimise_null_text(sd, pivot, text, GUIDANCE, size.updates, LR, "checkpointing" in way, progress=False)

    return step


def memory(size: Size, device: str, way: str) -> list[float]:
    """[of the model alone, at the peak of a step], in MiB, of this process or of the GPU."""
    unet = random_unet(size.unet, dtype_of(way), device)
    gc.collect()
    model = peak()
    step_of(way, size, unet, device)()
    return [model, peak()]


def times(size: Size, device: str, ways: list[str]) -> dict[str, list[float]]:
    """The seconds of a step of each way in each round, in this process, in turns."""
    torch.backends.cudnn.allow_tf32 = False
    unets = {dtype: random_unet(size.unet, dtype, device) for dtype in dict.fromkeys(map(dtype_of, ways))}
    steps = {way: step_of(way, size, unets[dtype_of(way)], device) for way in ways}
    clock = time.perf_counter if device == "cuda" else time.process_time  # processor time, in which other programs do not count
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    warm_up = device == "cuda" or size.rounds > 1
    for round in range(size.rounds + warm_up):
        for way, step in steps.items():
            start = clock()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            if round >= warm_up:
                seconds[way].append(clock() - start)
    return seconds


def peak() -> float:
    """The most memory used so far, in MiB: of the GPU, if this process has used one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def in_a_process(*arguments: str):
    """What this file prints when it is called with these arguments."""
    command = [sys.executable, "-m", "tests.bench.bench_null_text", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def main() -> None:
    name, device, *way = (*sys.argv[1:], *["toy", "cuda" if torch.cuda.is_available() else "cpu"][len(sys.argv) - 1 :])
    if device not in SIZES or name not in SIZES[device]:
        sys.exit(f"there is no {name!r} on {device!r}: give toy or sd1, then cpu or cuda")
    size = SIZES[device][name]
    ways = list(WAYS if device == "cuda" else WAYS[:-1])  # CPUs compute float16 slowly
    if way:
        print(json.dumps(times(size, device, ways) if way == ["all"] else memory(size, device, *way)))
        return
    of = f"latent {size.side} x {size.side}, {size.updates} updates, {device}, float32 if not said, median of {size.rounds}"
    print(f"{name}, {of}")
    print(f"{'':22}{'seconds':>10}{'ratio':>8}{'from - to':>14}{'peak MiB':>11}{'above the model':>18}", flush=True)
    seconds = in_a_process(name, device, "all")
    for way in ways:
        ratios = [ours / theirs for ours, theirs in zip(seconds[way], seconds["published"])]
        model, most = in_a_process(name, device, way)
        took = f"{statistics.median(seconds[way]):>10.2f}{statistics.median(ratios):>8.2f}"
        spread = f"{min(ratios):.2f} - {max(ratios):.2f}"
        print(f"{way:22}{took}{spread:>14}{most:>11.0f}{most - model:>18.0f}", flush=True)


if __name__ == "__main__":
    main()
