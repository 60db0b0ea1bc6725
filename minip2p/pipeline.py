"""StableDiffusion: text and noise in, pictures out, with one seam through which every edit passes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minip2p import checkpoint
from minip2p.attention import Site
from minip2p.clip import TextEncoder
from minip2p.ddim import Schedule, ddim_step
from minip2p.edits import Edit
from minip2p.errors import PromptError
from minip2p.inversion import Inversion
from minip2p.maps import Maps, Seam, nearest
from minip2p.tokenizer import CLIPTokenizer
from minip2p.unet import UNet
from minip2p.vae import VAE


@dataclass(frozen=True)
class Result:
    """What `generate` returns. B is the number of prompts."""

    images: list[Image.Image]
    latents: Tensor  # (B, 4, h, w), the pictures before the VAE decodes them
    start: Tensor  # (1 or B, 4, h, w), the noise they began as
    maps: Maps | None  # with record=True
    masks: Tensor | None  # (steps, B - 1, 1, h, w) with a local blend: where the edit was allowed, step by step
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class StableDiffusion:
    """The five parts of a checkpoint, and the loop that makes pictures with them."""

    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None):
        """A folder in diffusers' layout or one .safetensors file. device None: cuda, else mps, else cpu; dtype None:
        float16 on cuda, else float32. CheckpointError says what is wrong with a file."""
        device = pick_device(device)
        dtype = pick_dtype(dtype, device)
        parts = checkpoint.load(path, device, dtype)
        return cls(parts.tokenizer, parts.text_encoder, parts.unet, parts.vae, parts.schedule, device, dtype)

    # ---------------------------------------------------------------- text and pictures

    def encode_text(self, prompts: str | Sequence[str]) -> Tensor:
        """(B, T, D). PromptError for a prompt that does not fit into the context."""
        prompts = [prompts] if isinstance(prompts, str) else prompts
        tokens = self.tokenizer([self.tokenizer.check(prompt) for prompt in prompts])
        return self.text_encoder(tokens.to(self.device))

    def encode_image(self, image: Image.Image) -> Tensor:
        """A picture, its sides multiples of what the network halves, -> scaled latents (1, 4, h, w), float32."""
        self.check_size((image.height, image.width))
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            latents = self.vae.encode((pixels.float() / 127.5 - 1).to(self.device, self.dtype))
        return latents.float() * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (B, 4, h, w) -> B pictures."""
        with torch.no_grad():
            pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.device, self.dtype))
        pixels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    # ---------------------------------------------------------------- the loop

    @torch.no_grad()
    def generate(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        edit=None,
        inversion: Inversion | None = None,
        latents: Tensor | None = None,
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        record: bool = False,
        progress: bool = True,
    ) -> Result:
        """Pictures of one or more prompts, all from the same noise, drawn on the CPU from `seed`. 50 steps, guidance 7.5.

        edit: a Swap, Add or Reweight, whose prompts these are, prompts[0] the source; or a function (maps, site) -> maps,
        asked at every step. inversion: the photograph to start from, with its own steps and guidance; prompts[0] is the prompt
        it was inverted with. latents: the noise to start from instead, (1 or B, 4, h, w). size: a side or (height, width)
        in pixels. record: keep all cross-attention maps.
        """
        prompts = self.check_prompts(prompts, edit)
        if inversion is not None:
            inversion = self.check_inversion(inversion, prompts[0], steps, guidance, negative, latents)
            steps, guidance, latents = inversion.steps, inversion.guidance, inversion.latents[-1:]
        steps, guidance = 50 if steps is None else steps, 7.5 if guidance is None else guidance
        self.check_numbers(seed, steps, guidance)
        start = self.noise(seed, size) if latents is None else self.check_latents(latents, len(prompts), size)
        z = start.expand(len(prompts), -1, -1, -1)
        sites = self.unet.sites(*z.shape[-2:])
        edit = edit.to(self.device) if isinstance(edit, Edit) else edit
        blend = getattr(edit, "blend", None)
        noted = [site for site in sites if site.kind == "cross"] if record else nearest(sites) if blend else []

        with_text = self.encode_text(prompts)
        without = self.without_text(negative, inversion, steps)
        recorded: list[dict[Site, Tensor]] = []
        shares, masks = 0.0, []
        alphas = self.schedule.alphas(steps)
        timesteps = tqdm(self.schedule.timesteps(steps), disable=not progress, delay=2, leave=False)
        for i, t in enumerate(timesteps):
            seam = Seam(edit.at(i, steps) if hasattr(edit, "at") else edit, noted, rows=len(prompts))
            text = with_text if guidance == 1 else torch.cat([without[i].expand_as(with_text), with_text])
            noise = self.guided_noise(z, t, text, guidance, seam, alphas[i])
            z = ddim_step(z, noise, alphas[i], alphas[i + 1])
            if inversion is not None and inversion.method == "direct":  # the source goes back on its path, no target moves
                z = torch.cat([inversion.latents[[steps - 1 - i]], z[1:]])
            if blend:
                shares = shares + blend.read({site: seam.notes[site] for site in nearest(sites)})
                masks.append(blend.mask(shares, z.shape[-2:]))
                z = blend(z, masks[-1]) if blend.active(i, steps) else z
            if record:
                recorded.append({site: maps.half() for site, maps in seam.notes.items()})
        self.check_finite(z)
        maps = Maps(self.tokenizer, prompts, stack(recorded)) if record else None
        return Result(self.decode_latents(z), z, start, maps, torch.stack(masks) if masks else None, prompts)

    def guided_noise(self, z: Tensor, t: int, text: Tensor, guidance: float, seam: Seam | None, a: float) -> Tensor:
        """e_uncond + guidance (e_text - e_uncond) (Ho & Salimans 2022), in float32; `text` is [without, with] text.

        At guidance 1 the half without text would cancel: `text` is then only the other half, and so is the batch.
        """
        z_in = z if guidance == 1 else torch.cat([z, z])
        output = self.unet(z_in.to(self.dtype), t, text, edit=seam).float()
        noise = self.schedule.noise(output, z_in, a)
        if guidance == 1:
            return noise
        without, with_text = noise.chunk(2)
        return without + guidance * (with_text - without)

    def without_text(self, negative: str, inversion: Inversion | None, steps: int) -> Tensor:
        """(steps, T, D): what the half without text is told at each step, `negative` or what an inversion puts in its place."""
        if inversion is not None and inversion.method == "null-text":
            return inversion.null_text.to(self.dtype)
        if inversion is not None and inversion.method == "negative-prompt":
            negative = inversion.prompt
        return self.encode_text([negative]).expand(steps, -1, -1)

    def noise(self, seed: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """The starting latents (1, 4, h, w) of a seed: float32, drawn on the CPU so that every device begins alike."""
        height, width = self.check_size(size)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.unet.config.in_channels, height // self.vae.config.factor, width // self.vae.config.factor)
        return torch.randn(shape, generator=generator).to(self.device)

    # ---------------------------------------------------------------- what a caller may say

    def check_prompts(self, prompts: str | Sequence[str], edit) -> tuple[str, ...]:
        prompts = (prompts,) if isinstance(prompts, str) else prompts
        if not isinstance(prompts, Sequence) or not prompts:
            raise PromptError(f"there is no prompt in {prompts!r}: give one string or a list of them")
        prompts = tuple(self.tokenizer.check(prompt) for prompt in prompts)
        edited = getattr(edit, "prompts", prompts)
        if tuple(edited) != prompts:
            raise PromptError(f"the edit was made for {list(edited)} and the prompts are {list(prompts)}: give both the same")
        return prompts

    def check_numbers(self, seed: int, steps: int, guidance: float) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise PromptError(f"seed is {seed!r}: give a whole number from 0 up")
        last = self.schedule.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < last:
            raise PromptError(f"steps is {steps!r}: give a whole number from 1 to {last - 1}")
        if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
            raise PromptError(f"guidance is {guidance!r}: give a number, 1 for none, 7.5 as usual")

    def check_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels; PromptError unless the UNet can halve them as often as it does."""
        if size is None:
            size = self.unet.config.sample_size * self.vae.config.factor
        size = (size, size) if isinstance(size, int) else size
        if not isinstance(size, Sequence) or len(size) != 2 or not all(isinstance(side, int) for side in size):
            raise PromptError(f"size is {size!r}: give one side in pixels, or (height, width)")
        height, width = size
        unit = self.vae.config.factor * 2 ** (self.unet.levels - 1)
        if any(side <= 0 or side % unit for side in (height, width)):
            good = " x ".join(str(max(unit, round(side / unit) * unit)) for side in (height, width))
            raise PromptError(f"size {height} x {width} is not possible: both sides must be multiples of {unit}, the nearest is {good}")
        return height, width

    def check_latents(self, latents: Tensor, prompts: int, size: int | tuple[int, int] | None = None) -> Tensor:
        channels = self.unet.config.in_channels
        if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[0] not in (1, prompts) or latents.shape[1] != channels:
            shape = tuple(getattr(latents, "shape", ()))
            raise PromptError(f"latents have shape {shape}: give a tensor (1, {channels}, h, w), or ({prompts}, {channels}, h, w)")
        height, width = self.check_size(tuple(side * self.vae.config.factor for side in latents.shape[-2:]))
        if size is not None and self.check_size(size) != (height, width):
            raise PromptError(f"size is {size} and the latents are those of a picture {height} x {width}: leave one of them out")
        return latents.to(self.device, torch.float32)

    def check_inversion(self, inversion, source: str, steps: int | None, guidance: float | None, negative: str, latents) -> Inversion:
        if not isinstance(inversion, Inversion):
            raise PromptError(f"inversion is {inversion!r:.60}: give what invert returned, or Inversion.load(file)")
        if latents is not None:
            raise PromptError("there are both latents and an inversion, which brings its own: leave one of them out")
        inversion.check(self, source, steps, guidance, negative)
        return inversion.to(self.device)

    def check_finite(self, latents: Tensor) -> None:
        if not latents.isfinite().all():
            raise FloatingPointError(f"the UNet's output is not finite in {self.dtype}: load the model with dtype float32 or bfloat16")


def stack(steps: list[dict[Site, Tensor]]) -> dict[Site, Tensor]:
    return {site: torch.stack([step[site] for step in steps]) for site in steps[0]}


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, if it is there; else cuda, mps or cpu, the first that is."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(name for name, available in there.items() if available))
    try:
        device = torch.device(device)
    except RuntimeError:
        raise PromptError(f"device {device!r} is unknown: use one of {', '.join(there)}") from None
    if not there.get(device.type, True):
        raise PromptError(f"device {device} is not available to torch on this machine: leave it out, or use cpu")
    return device


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, by itself or by name; else float16 on cuda and float32 elsewhere."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise PromptError(f"dtype {dtype!r} is unknown: use float32, float16 or bfloat16")
    return found
