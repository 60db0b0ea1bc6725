"""One step of null-text inversion: ours, ours with checkpointing or in bfloat16, and as the authors published it. Seconds and memory.

    python -m tests.bench.bench_null_text            # the toy's size: about a minute
    python -m tests.bench.bench_null_text sd1        # Stable Diffusion 1.5's size, random weights: minutes, 12 GiB of memory
    python -m tests.bench.bench_null_text sd1 cuda   # the same on a GPU, with latents of 64 x 64

A step is what happens between two latents: the noise with text once, then updates of the embedding, then the step itself.
The published way runs through the same UNet, but writes every attention map down in float32, lets the gradient of every
weight be computed on the way back, and asks again for both halves of guidance when it takes the step. Each row is a process
of its own; its peak memory is that of the process, or, on a GPU, of torch; on a CPU the seconds are processor time, summed
over threads. Nothing here is a test.
"""

import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from types import MethodType, SimpleNamespace

import torch
import torch.nn.functional as F

from minip2p import StableDiffusion
from minip2p.ddim import Schedule, ddim_step
from minip2p.inversion import fit_null_text
from minip2p.unet import UNet, UNetConfig

WAYS = ("published", "ours", "ours, checkpointing", "ours, bfloat16", "ours, float16")
GUIDANCE, LR = 7.5, 0.01


@dataclass(frozen=True)
class Size:
    unet: UNetConfig
    side: int  # of the latent
    updates: int
    rounds: int  # the median of so many is taken


TOY = UNetConfig(
    sample_size=16, block_out_channels=(64, 128, 128), down_attention=(True, True, False), layers_per_block=1,
    cross_attention_dim=128, heads=(2, 2, 2),
)  # fmt: skip
SIZES = {
    "cpu": {"toy": Size(TOY, 16, 10, 5), "sd1": Size(UNetConfig(), 32, 2, 1)},
    "cuda": {"toy": Size(TOY, 16, 10, 5), "sd1": Size(UNetConfig(), 64, 10, 5)},
}


def random_unet(config: UNetConfig, dtype: torch.dtype, device: str) -> UNet:
    """Made in this dtype, so that its weights are never there in two precisions."""
    torch.set_default_dtype(dtype)
    with torch.device(device):
        unet = UNet(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    return unet


def published(sd, pivot, text, guidance, updates, lr) -> None:
    """The authors' step, from their release: autograd reaches every weight, since nothing was told not to."""

    def every_map(maps, site):  # asked at every layer, so every layer writes its maps down
        return maps

    [t], (a_from, a_to) = sd.schedule.timesteps(1), sd.schedule.alphas(1)
    z, target, null = pivot[1:], pivot[:1], sd.encode_text("").clone().requires_grad_()
    adam = torch.optim.Adam([null], lr)
    with torch.no_grad():
        with_text = sd.unet(z, t, text, edit=every_map)
    for _ in range(updates):
        without = sd.unet(z, t, null, edit=every_map)
        loss = F.mse_loss(ddim_step(z, without + guidance * (with_text - without), a_from, a_to), target)
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()  # they compare it with their threshold
    with torch.no_grad():
        without, with_text = sd.unet(torch.cat([z, z]), t, torch.cat([null, text]), edit=every_map).chunk(2)
        ddim_step(z, without + guidance * (with_text - without), a_from, a_to)


def measure(name: str, device: str, way: str) -> dict[str, float]:
    """One row, in this process: the median seconds of a step, the memory with only the model, and the peak, in MiB."""
    size = SIZES[device][name]
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    dtype = getattr(torch, way.removeprefix("ours, ")) if way.endswith("float16") else torch.float32
    unet = random_unet(size.unet, dtype, device).requires_grad_(way == "published")
    D = size.unet.cross_attention_dim
    empty, text = torch.randn(2, 1, 77, D, device=device).to(dtype)
    sd = SimpleNamespace(unet=unet, schedule=Schedule(), dtype=dtype, encode_text=lambda prompt: empty)
    sd.guided_noise = MethodType(StableDiffusion.guided_noise, sd)
    pivot = torch.randn(2, 4, size.side, size.side, device=device)

    def step():
        if way == "published":
            return published(sd, pivot, text, GUIDANCE, size.updates, LR)
        with torch.no_grad():
            return fit_null_text(sd, pivot, text, GUIDANCE, size.updates, LR, "checkpointing" in way, progress=False)

    gc.collect()
    model = peak()
    if device == "cuda":
        step()  # the warm-up: a GPU's first step loads and chooses its kernels
        torch.cuda.synchronize()
    else:
        with torch.no_grad():
            unet(pivot[:1].to(dtype), 500, text)
    clock = time.perf_counter if device == "cuda" else time.process_time  # processor time: other programs do not count
    seconds = []
    for _ in range(size.rounds):
        start = clock()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - start)
    return {"seconds": statistics.median(seconds), "model": model, "peak": peak()}


def peak() -> float:
    """The most memory used so far, in MiB: of the GPU, if this process has used one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def main() -> None:
    if len(sys.argv) == 4:
        print(json.dumps(measure(*sys.argv[1:])))
        return
    name, device = (*sys.argv[1:], *["toy", "cuda" if torch.cuda.is_available() else "cpu"][len(sys.argv) - 1 :])
    if device not in SIZES or name not in SIZES[device]:
        sys.exit(f"there is no {name!r} on {device!r}: give toy or sd1, then cpu or cuda")
    size = SIZES[device][name]
    print(
        f"{name}, latent {size.side} x {size.side}, {size.updates} updates, {device}, float32 if not said, median of {size.rounds}"
    )
    print(f"{'':22}{'seconds':>10}{'ratio':>8}{'peak MiB':>11}{'above the model':>18}", flush=True)
    first = None
    for way in WAYS if device == "cuda" else WAYS[:-1]:  # CPUs compute float16 slowly
        command = [sys.executable, "-m", "tests.bench.bench_null_text", name, device, way]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        first = first or row["seconds"]
        above = row["peak"] - row["model"]
        print(f"{way:22}{row['seconds']:>10.2f}{row['seconds'] / first:>8.2f}{row['peak']:>11.0f}{above:>18.0f}", flush=True)


if __name__ == "__main__":
    main()
