"""What an edit costs beside plain generation: a table of ratios, seconds, the arithmetic floor, and memory. It is not a test.

    make bench                                       # the toy; minutes
    python -m tests.bench.bench --size sd1           # Stable Diffusion 1.5's size, random weights: 4 GB of disk, 15 GB of memory
    python -m tests.bench.bench --size sd1 --device cuda

The programs of a ratio take turns in one process, after a run to warm up. The table has the median ratio over the rounds. Each
peak memory is measured in a process of its own. "The authors' way" is tests/restatement.py, which materialises all maps of all
layers in float32, for both halves of guidance. On a GPU, float32 means float32 and not TF32. At Stable Diffusion's size a CPU
runs five steps, so that the windows of an edit have their shares (0.8 and 0.4), and does not decode.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from minip2p import StableDiffusion, Swap
from minip2p.recording import map_bytes
from tests import restatement
from tests.bench import bench_null_text
from tests.pipelines import write_tokenizer

TOY = Path(__file__).resolve().parents[2] / "weights" / "toy"
PROMPTS = ["a red cat next to a house", "a red dog next to a house"]
RATIOS = [
    ("our plain generation / diffusers'", "plain", "diffusers"),
    ("our edit / diffusers' plain generation", "edit", "diffusers"),
    ("our edit / the authors' way", "edit", "authors"),
    ("second edit of a recorded source / first", "second", "edit"),
    ("our edit with CUDA graphs / without", "graphed", "edit"),
    ("second edit / first, both with CUDA graphs", "second_graphed", "graphed"),
]
NAMES = {"diffusers": "diffusers, plain", "plain": "ours, plain", "edit": "ours, an edit", "second": "ours, a second edit",
         "graphed": "ours, an edit, CUDA graphs", "second_graphed": "ours, a second edit, CUDA graphs",
         "authors": "the authors' way, float32"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One table: what is run where."""

    size: str  # "toy" or "sd1"
    folder: str
    device: str
    dtype: str
    pixels: int
    steps: int
    rounds: int
    decode: bool = True


class Undecoded(StableDiffusion):
    """Returns latents and no pictures."""

    def decode_latents(self, latents: torch.Tensor) -> list:
        return []


# ---------------------------------------------------------------- the programs: two prompts, guidance 7.5, from noise to pictures


def ours(case: Case) -> StableDiffusion:
    return loaded(replace(case, steps=0))  # the same model for the warm-up and the run


@cache
def loaded(case: Case) -> StableDiffusion:
    kind = StableDiffusion if case.decode else Undecoded
    return kind.load(case.folder, case.device, case.dtype)


@cache
def with_graphs(sd: StableDiffusion, rows: int) -> StableDiffusion:
    """One for each number of rows, because a GraphedUNet keeps the graphs of one shape only."""
    return replace(sd, cuda_graph=True)


@cache
def theirs(folder: str, device: str, dtype: str) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(case: Case, pipeline: StableDiffusionPipeline) -> torch.Tensor:
    side = case.pixels // pipeline.vae_scale_factor
    drawn = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
    return drawn.to(pipeline.device, pipeline.dtype)


def diffusers(case: Case) -> Callable:
    pipeline = theirs(case.folder, case.device, case.dtype)
    start = noise(case, pipeline).expand(2, -1, -1, -1)
    form = "pil" if case.decode else "latent"
    return lambda: pipeline(PROMPTS, num_inference_steps=case.steps, guidance_scale=7.5, latents=start, output_type=form)


def plain(case: Case) -> Callable:
    sd = ours(case)
    return lambda: sd.generate(PROMPTS, steps=case.steps, size=case.pixels, progress=False)


def edit(case: Case, graphs: bool = False) -> Callable:
    sd = with_graphs(ours(case), 4) if graphs else ours(case)
    swap = Swap(sd.tokenizer, PROMPTS)
    return lambda: sd.generate(PROMPTS, steps=case.steps, size=case.pixels, edit=swap, progress=False)


def second(case: Case, graphs: bool = False) -> Callable:
    sd = with_graphs(ours(case), 2) if graphs else ours(case)
    swap = Swap(sd.tokenizer, PROMPTS)
    recording = sd.record(PROMPTS[0], steps=case.steps, size=case.pixels, progress=False)
    return lambda: sd.generate(PROMPTS, recording=recording, edit=swap, progress=False)


def authors(case: Case) -> Callable:
    pipeline = theirs(case.folder, case.device, "float32")
    start, device = noise(case, pipeline), torch.device(case.device)
    with device:
        mapper = restatement.replacement(pipeline.tokenizer, *PROMPTS).to(device)
        cross, own = (0, int(0.8 * case.steps)), (0, int(0.4 * case.steps))
        windows, ones = [[cross] * len(mapper)], [torch.ones(len(mapper))]
        recipe = restatement.Recipe([restatement.replace_with(mapper)], ones, windows, own)

    @torch.no_grad()
    def run():
        with device:
            latents, _ = restatement.generate(pipeline, PROMPTS, recipe, start, case.steps, 7.5)
            if case.decode:
                pipeline.image_processor.postprocess(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample)

    return run


PROGRAMS = {function.__name__: function for function in (diffusers, plain, edit, second, authors)}
GRAPHS = {"graphed": partial(edit, graphs=True), "second_graphed": partial(second, graphs=True)}


def programs(case: Case) -> dict[str, Callable]:
    return PROGRAMS | (GRAPHS if case.device == "cuda" else {})


# ---------------------------------------------------------------- measuring, in a process of its own


def seconds(run: Callable, device: str) -> float:
    begun = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def measure_times(case: Case) -> dict:
    """The median seconds of each program, and the median over the rounds of each ratio."""
    for make in programs(case).values():  # a short run to warm up
        make(replace(case, steps=min(case.steps, 10) if case.decode else 1))()
    runs = {name: make(case) for name, make in programs(case).items()}
    rounds = []
    for _ in range(case.rounds):
        rounds.append({name: seconds(run, case.device) for name, run in runs.items()})
    ratios = {
        label: statistics.median(each[above] / each[below] for each in rounds)
        for label, above, below in RATIOS
        if above in runs and below in runs
    }
    medians = {name: statistics.median(each[name] for each in rounds) for name in runs}
    return {"ratios": ratios, "seconds": medians} | floor(case) | recorded(case)


def measure_memory(case: Case, name: str) -> dict:
    """MiB with the models only, and at the peak of one run. Where steps are long, two are enough, because steps are alike.

    A recording counts as part of the models; its size is a number of its own.
    """
    case = case if case.decode else replace(case, steps=2)
    run = programs(case)[name](case)
    gc.collect()
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which was that of loading
    model = bench_null_text.peak()
    run()
    return {"model": model, "peak": bench_null_text.peak()}


def recorded(case: Case) -> dict:
    """MiB of the maps of a recording."""
    sd = ours(case)
    side = case.pixels // sd.vae.config.factor
    return {"recording": map_bytes(sd.unet, side, side, case.steps, sd.tokenizer.context) / 2**20}


def floor(case: Case) -> dict:
    """The flops of plain generation (two per multiplication), and the flops per second of this device in large products."""
    sd = ours(case)
    side = case.pixels // sd.vae.config.factor
    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        unet, vae = type(sd.unet)(sd.unet.config), type(sd.vae)(sd.vae.config)
        T, D = sd.tokenizer.context, sd.unet.config.cross_attention_dim
        with FlopCounterMode(display=False) as of_step:
            unet(torch.empty(4, 4, side, side), 1, torch.empty(4, T, D))
        with FlopCounterMode(display=False) as of_decoding:
            vae.decode(torch.empty(2, 4, side, side))
    flops = case.steps * of_step.get_total_flops() + case.decode * of_decoding.get_total_flops()
    return {"flops": flops, "rate": matmul_rate(case.device, getattr(torch, case.dtype))}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Flops per second of a large matrix product, the best of 20."""
    n = 8192 if device == "cuda" else 2048
    a = torch.randn(n, n, device=device, dtype=dtype)
    return max([2 * n**3 / seconds(lambda: a @ a, device) for _ in range(20)])


# ---------------------------------------------------------------- the table


def write_sd1(folder: Path) -> None:
    """Stable Diffusion 1.5's architecture with random weights, in float16, in diffusers' layout."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    down = ("DownEncoderBlock2D",) * 4
    vae = AutoencoderKL(down_block_types=down, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
                        layers_per_block=2, sample_size=512)  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    StableDiffusionPipeline(
        vae=vae.half(), text_encoder=CLIPTextModel(text).half(), tokenizer=tokenizer, unet=unet.half(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def in_a_process(case: Case, what: str) -> dict:
    command = [sys.executable, "-m", "tests.bench.bench", "--measure", what, "--case", json.dumps(vars(case))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} of {case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def report(case: Case) -> None:
    times = in_a_process(case, "times")
    where = f"{case.dtype}, {case.device}, {case.rounds} rounds{'' if case.decode else ', without decoding'}"
    print(f"\n{case.size}, {case.pixels} x {case.pixels}, {case.steps} steps, two prompts, {where}")
    for label, ratio in times["ratios"].items():
        print(f"  {label:45}{ratio:8.2f}")
    best = times["flops"] / times["rate"]
    for name in [name for name in ("edit", "graphed") if name in times["seconds"]]:
        print(f"  {f'{NAMES[name]} / the arithmetic floor':45}{times['seconds'][name] / best:8.2f}")
    print(f"  {'':45}{'seconds':>8}{'peak MiB':>10}{'above the models':>18}", flush=True)
    for name, label in [(name, label) for name, label in NAMES.items() if name in times["seconds"]]:
        memory = in_a_process(case, name)
        above = memory["peak"] - memory["model"]
        print(f"  {label:45}{times['seconds'][name]:8.2f}{memory['peak']:10.0f}{above:18.0f}", flush=True)
    floor_label = f"floor: {times['flops'] / 1e12:.3g} Tflop at {times['rate'] / 1e12:.3g} Tflop/s"
    print(f"  {floor_label:45}{best:8.2f}")
    print(f"  {f'a recording of {case.steps} steps':45}{'':8}{times['recording']:10.0f}", flush=True)


def cases(size: str, device: str, folder: str, dtype: str | None) -> list[Case]:
    dtypes = (dtype,) if dtype else ("float16", "float32") if device == "cuda" else ("float32", "bfloat16")
    if size == "toy":  # bfloat16 takes minutes on CPUs without instructions for it
        dtypes = dtypes if device == "cuda" or dtype else ("float32",)
        return [Case(size, folder, device, dtype, 64, 10, 9) for dtype in dtypes]
    if device == "cuda":
        return [Case(size, folder, device, dtype, 512, 50, 3) for dtype in dtypes]
    return [Case(size, folder, device, dtype, 512, 5, 1, decode=False) for dtype in dtypes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--size", choices=("toy", "sd1", "all"), default="toy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="default: two of them")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        torch.backends.cudnn.allow_tf32 = False
        case = Case(**json.loads(args.case))
        print(json.dumps(measure_times(case) if args.measure == "times" else measure_memory(case, args.measure)))
        return
    for size in ("toy", "sd1") if args.size == "all" else (args.size,):
        with tempfile.TemporaryDirectory() as scratch:
            if size == "sd1":
                write_sd1(Path(scratch))
            for case in cases(size, args.device, str(TOY) if size == "toy" else scratch, args.dtype):
                report(case)
        print("\na null-text step; ratio: time / the published way's", flush=True)
        subprocess.run([sys.executable, "-m", "tests.bench.bench_null_text", size, args.device], check=True)


if __name__ == "__main__":
    main()
