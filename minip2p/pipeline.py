"""StableDiffusion: text and noise in, pictures out, with one seam through which every edit passes."""

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
from minip2p.checks import check_latents, check_numbers, check_prompts, check_size
from minip2p.clip import TextEncoder
from minip2p.ddim import Schedule, ddim_step
from minip2p.devices import advice, pick_device, pick_dtype
from minip2p.edits import Edit
from minip2p.errors import PromptError
from minip2p.inversion import Inversion
from minip2p.maps import Maps, Seam, layout_sites
from minip2p.recording import Recording, record
from minip2p.saved import settle
from minip2p.tokenizer import CLIPTokenizer
from minip2p.unet import UNet
from minip2p.vae import VAE


@dataclass(frozen=True)
class Result:
    """What `generate` returns. B is the number of prompts."""

    images: list[Image.Image]
    latents: Tensor  # (B, 4, h, w), the pictures before the VAE decodes them
    start: Tensor  # (1 or B, 4, h, w), the noise they began as
    trajectory: Tensor  # (steps + 1, B, 4, h, w), from the noise to the pictures
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
        return self.text_encoder(tokens)

    def encode_image(self, image: Image.Image) -> Tensor:
        """A picture, its sides multiples of what the network halves, -> scaled latents (1, 4, h, w), float32."""
        if not isinstance(image, Image.Image):
            raise PromptError(f"the image is a {type(image).__name__}: open it first, images.open_image also brings it to size")
        self.check_size((image.height, image.width))
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        with torch.no_grad():
            latents = self.vae.encode((pixels.float() / 127.5 - 1).to(self.device, self.dtype))
        self.check_finite(latents, "the VAE's encoder")
        return latents.float() * self.vae.config.scaling_factor

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (B, 4, h, w) -> B pictures."""
        with torch.no_grad():
            pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.device, self.dtype))
        self.check_finite(pixels, "the VAE's decoder")
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
        recording: Recording | None = None,
    ) -> Result:
        """Pictures of one or more prompts, all from the same noise, drawn on the CPU from `seed`. 50 steps, guidance 7.5.

        edit: a Swap, Add or Reweight, whose prompts these are, prompts[0] the source; or a function (maps, site) -> maps,
        asked at every step. inversion: the photograph to start from, with its own steps and guidance; prompts[0] is the prompt
        it was inverted with. latents: the noise to start from instead, (1 or B, 4, h, w). size: a side or (height, width)
        in pixels. record: keep all cross-attention maps. recording: of prompts[0], from `sd.record`, whatever the edit does to
        the source's own row; only the other prompts are run, from its noise, with its steps, guidance and negative.
        """
        prompts = check_prompts(self.tokenizer, prompts, edit)
        kept = self.check_kept(inversion, recording, prompts, steps, guidance, negative, latents)
        steps, guidance = settle(steps, guidance, kept)
        seed, steps, guidance = check_numbers(self.schedule, seed, steps, guidance, negative)
        latents = latents if kept is None else kept.start
        start = self.noise(seed, size) if latents is None else self.check_latents(latents, len(prompts), size)
        z = start.expand(len(prompts), -1, -1, -1)
        path = None if kept is None or kept.path is None else kept.path.to(self.device)
        targets = len(prompts) - 1
        rows = targets if recording is not None else len(prompts)  # how many prompts are run: the last ones
        sites = self.unet.sites(*z.shape[-2:])
        edit = edit.to(self.device) if isinstance(edit, Edit) else edit
        recording = recording and recording.to(self.device)
        blend = getattr(edit, "blend", None)
        noted = [site for site in sites if site.kind == "cross"] if record else layout_sites(sites) if blend else []

        with_text = self.encode_text(prompts[-rows:])
        without = self.without_text(negative, kept).expand(steps, -1, -1)
        recorded: list[dict[Site, Tensor]] = []
        trajectory, shares, masks = [z], 0.0, []
        alphas = self.schedule.alphas(steps)
        timesteps = torch.tensor(self.schedule.timesteps(steps), device=self.device)
        for i, t in enumerate(tqdm(timesteps, disable=not progress, delay=2, leave=False)):  # nothing here waits for the device
            source = recording.at(i) if recording is not None else None
            seam = Seam(edit.at(i, steps) if hasattr(edit, "at") else edit, noted, rows, source)
            text = with_text if guidance == 1 else torch.cat([without[i].expand_as(with_text), with_text])
            noise = self.guided_noise(z[-rows:], t, text, guidance, seam, alphas[i])
            z = ddim_step(z[-rows:], noise, alphas[i], alphas[i + 1])
            if path is not None:  # the source goes (back) on its path, no target moves
                z = torch.cat([path[i + 1 : i + 2], z[len(z) - targets :]])
            if blend:
                shares = shares + blend.read({site: seam.notes[site] for site in layout_sites(sites)})
                masks.append(blend.mask(shares, z.shape[-2:]))
                z = blend.apply(z, masks[-1]) if blend.active(i, steps) else z
            if record:
                recorded.append({site: maps.half() for site, maps in seam.notes.items()})
            trajectory.append(z)
        self.check_finite(with_text, "the text encoder")
        self.check_finite(z, "the UNet")
        maps = Maps(self.tokenizer, prompts, stack(recorded)) if record else None
        masks = torch.stack(masks) if masks else None
        return Result(self.decode_latents(z), z, start, torch.stack(trajectory), maps, masks, prompts)

    def record(self, prompt: str, **options) -> Recording:
        """Run one prompt and keep what any number of later edits need of it; options: see `record` in recording.py."""
        return record(self, prompt, **options)

    def guided_noise(self, z: Tensor, t: int | Tensor, text: Tensor, guidance: float, seam: Seam | None, a: float) -> Tensor:
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

    def without_text(self, negative: str, kept: Inversion | Recording | None) -> Tensor:
        """(1 or steps, T, D): what the half without text is told, `negative` or what a kept run puts in its place."""
        if kept is not None and kept.without is not None:
            return kept.without.to(self.device, self.dtype)
        if isinstance(kept, Inversion) and kept.method == "negative-prompt":
            negative = kept.prompt
        return self.encode_text([negative])

    def noise(self, seed: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """The starting latents (1, 4, h, w) of a seed: float32, drawn on the CPU so that every device begins alike."""
        height, width = self.check_size(size)
        generator = torch.Generator().manual_seed(seed)
        shape = (1, self.unet.config.in_channels, height // self.vae.config.factor, width // self.vae.config.factor)
        return torch.randn(shape, generator=generator).to(self.device)

    # ---------------------------------------------------------------- what a caller may say

    def check_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels; PromptError unless the UNet can halve them as often as it does."""
        factor = self.vae.config.factor
        return check_size(self.unet.config.sample_size * factor if size is None else size, factor * 2 ** (self.unet.levels - 1))

    def check_latents(self, latents: Tensor, prompts: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """The latents on the device in float32; PromptError unless they are a size the UNet can halve."""
        check_latents(latents, prompts, self.unet.config.in_channels)
        height, width = self.check_size(tuple(side * self.vae.config.factor for side in latents.shape[-2:]))
        if size is not None and self.check_size(size) != (height, width):
            raise PromptError(f"size is {size} and the latents are those of a picture {height} x {width}: leave one of them out")
        return latents.to(self.device, torch.float32)

    def check_kept(self, inversion, recording, prompts, steps, guidance, negative, latents) -> Inversion | Recording | None:
        """The one of the two that is given, if any; PromptError unless this run is one it was made for."""
        given = [kept for kept in (inversion, recording) if kept is not None]
        if not given:
            return None
        if len(given) == 2:
            raise PromptError("there are both an inversion and a recording, which holds its own source: leave one of them out")
        kind, name = (Inversion, "an inversion") if recording is None else (Recording, "a recording")
        if not isinstance(given[0], kind):
            what = kind.__name__
            raise PromptError(f"{what.lower()} is {given[0]!r:.60}: give what {kind.verb} returned, or {what}.load(file)")
        if latents is not None:
            raise PromptError(f"there are both latents and {name}, which brings its own: leave one of them out")
        if recording is not None and len(prompts) == 1:
            raise PromptError("the only prompt is the source, which the recording holds already: give a target as well")
        given[0].check(self, prompts[0], steps, guidance, negative)
        return given[0]

    def check_finite(self, values: Tensor, part: str = "the UNet") -> None:
        """FloatingPointError, once after the work: asking earlier would make every step wait for the device."""
        if not values.isfinite().all():
            raise FloatingPointError(f"the output of {part} is not finite in {self.dtype}: {advice(self.dtype)}")


def stack(steps: list[dict[Site, Tensor]]) -> dict[Site, Tensor]:
    return {site: torch.stack([step[site] for step in steps]) for site in steps[0]}
