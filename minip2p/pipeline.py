"""StableDiffusion: text and noise in, pictures out, with one argument through which every edit passes."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from minip2p import checkpoint
from minip2p.attention import AttentionEdit
from minip2p.attention_store import AttentionStore, Maps
from minip2p.checks import check_made_for, check_numbers, check_prompts, check_size, plain_torch
from minip2p.clip import TextEncoder
from minip2p.compose import Chain, after_step, as_edit, at_step
from minip2p.cuda_graph import GraphedUNet
from minip2p.devices import advice, pick_device, pick_dtype
from minip2p.errors import RequestError
from minip2p.images import to_rgb
from minip2p.recording import Recording, map_bytes
from minip2p.result import Result
from minip2p.saved import SavedRun, fingerprint, given_run
from minip2p.scheduler import Schedule, ddim_step, pred_x0
from minip2p.tokenizer import CLIPTokenizer
from minip2p.unet import UNet
from minip2p.vae import VAE

STEPS, GUIDANCE = 50, 7.5


@dataclass(frozen=True, repr=False)
class StableDiffusion:
    """The parts of a checkpoint, and the loop that makes pictures with them."""

    tokenizer: CLIPTokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    schedule: Schedule
    device: torch.device
    dtype: torch.dtype
    path: str = field(default="")
    cuda_graph: bool = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        prediction_type: str | None = None,
        cuda_graph: bool = False,
    ) -> "StableDiffusion":
        """Loads a folder in diffusers' layout or one .safetensors file; CheckpointError says what is wrong with a file.

        device None: cuda, else mps, else cpu. dtype None: float16 on cuda, float32 elsewhere. prediction_type: "epsilon" or
        "v_prediction", for a single file that does not say what its network predicts. cuda_graph: generate faster on an NVIDIA
        GPU, with the UNet's kernels captured and replayed (cuda_graph.py).
        """
        device = pick_device(device)
        dtype = pick_dtype(dtype, device)
        if cuda_graph and device.type != "cuda":
            raise RequestError(f"cuda_graph is for NVIDIA GPUs and the device is {device}: leave it out")
        parts = checkpoint.load(path, device, dtype, prediction_type)
        networks = (parts.text_encoder, parts.unet, parts.vae)
        return cls(parts.tokenizer, *networks, parts.schedule, device, dtype, str(path), cuda_graph)

    def __repr__(self) -> str:
        millions = sum(p.numel() for network in (self.unet, self.text_encoder, self.vae) for p in network.parameters()) / 1e6
        return (
            f"<StableDiffusion {self.path}, {millions:,.0f} M weights, {self.device}, {str(self.dtype).removeprefix('torch.')}>"
        )

    @cached_property
    def graphed(self) -> GraphedUNet:
        """Called in place of the UNet during generation if `cuda_graph` is true; it keeps its graphs from run to run."""
        return GraphedUNet(self.unet)

    # ---------------------------------------------------------------- text and pictures

    @torch.no_grad()
    def encode_text(self, prompts: str | Sequence[str]) -> Tensor:
        """One prompt or several -> (B, T, D). PromptError for a prompt that does not fit into the context."""
        return self.text_encoder(self.tokenizer(check_prompts(self.tokenizer, prompts)))

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> Tensor:
        """A picture of a size that the networks can downsample -> scaled latents (1, 4, h, w), float32."""
        if not isinstance(image, Image.Image):
            raise RequestError(f"the image is a {type(image).__name__}: open it first; images.open_image also resizes it")
        self.check_size((image.height, image.width))
        pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)[None]
        latents = self.vae.encode((pixels.float() / 127.5 - 1).to(self.device, self.dtype))
        self.check_finite(latents, "the VAE's encoder")
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Scaled latents (B, 4, h, w) -> B pictures."""
        pixels = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.device, self.dtype))
        self.check_finite(pixels, "the VAE's decoder")
        pixels = ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return [Image.fromarray(picture) for picture in pixels.permute(0, 2, 3, 1).cpu().numpy()]

    # ---------------------------------------------------------------- generation

    def generate(
        self,
        prompts: str | Sequence[str],
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        edit=None,
        inversion: SavedRun | None = None,
        latents: Tensor | None = None,
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        record: bool | str = False,
        progress: bool = True,
        recording: SavedRun | None = None,
    ) -> Result:
        """Pictures of one or more prompts, all from the same noise, which is drawn on the CPU from `seed`.

        steps and guidance: 50 and 7.5, or those of the inversion or recording. edit: a Swap, Add or Reweight of these prompts
        (prompts[0] is the source), another AttentionEdit, or a function (attn, site) -> attn. inversion: of a picture, made by
        `invert`; prompts[0] is the prompt it was inverted with. recording: of prompts[0], made by `record`; only the other
        prompts are run, and the edit must leave the source's row as it is. latents: the noise to start from, (1 or B, 4, h, w).
        negative: a prompt to guide away from, in place of the empty one. size: a side or (height, width) in pixels. record: True
        keeps all cross-attention maps; "all" also keeps the maps before the edit. progress: a bar on stderr, if the run takes
        longer than two seconds.
        """
        given, edit = edit if isinstance(edit, AttentionEdit) else None, as_edit(edit)
        prompts = check_prompts(self.tokenizer, prompts)
        check_made_for(edit, self.tokenizer, prompts)
        saved = self.check_saved(inversion, recording, prompts, steps, guidance, negative, latents, seed)
        steps, guidance = defaults(steps, guidance, saved)
        seed, steps, guidance = check_numbers(seed, steps, guidance, negative)
        if record not in (True, False, "all"):
            raise RequestError(f'record is {record!r}: give True, False, or "all"')
        with plain_torch(self.device):
            start = self.first_latents(saved, latents, seed, size, len(prompts))
            own, kept = AttentionStore(), AttentionStore()
            if record:
                edit = Chain([own, edit, kept] if record == "all" else [edit, kept])
            if saved is None:
                edit = edit.prepare(self.device)
            else:
                edit = saved.around(edit).prepare(self.device, saved.fit_mask)
            cond = self.encode_text(prompts if saved is None else saved.prompts_to_run(prompts))
            uncond = self.uncond(saved, negative, steps)

            trajectory, x0 = [start.expand(len(cond), -1, -1, -1)], []
            for z, predicted in self.denoise(trajectory[0], cond, uncond, guidance, edit, progress):
                trajectory.append(z)
                x0.append(predicted)
            trajectory, x0 = torch.stack(trajectory), torch.stack(x0)
            self.check_finite(cond, "the text encoder")
            self.check_finite(trajectory[-1], "the UNet")
            if saved is not None:
                trajectory, x0 = saved.complete(edit, trajectory, x0)
            images = self.decode_latents(trajectory[-1])
        maps = Maps(self.tokenizer, prompts, kept.maps) if record else None
        own_maps = Maps(self.tokenizer, prompts, own.maps) if record == "all" else None
        masks = torch.stack(list(edit.masks)) if len(edit.masks) else None
        seed = seed if saved is None and latents is None else None
        return Result(images, trajectory[-1], start.clone(), trajectory, x0, prompts, steps, guidance, seed, given, maps, own_maps, masks)

    def denoise(
        self, z: Tensor, cond: Tensor, uncond: Tensor, guidance: float, edit: AttentionEdit, progress: bool = True
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """DDIM sampling with classifier-free guidance: yields (latents, predicted x0), each (B, 4, h, w), after every step.

        z (B, 4, h, w): the noise; cond (B, T, D): the prompts; uncond (steps, T, D): the unconditional embedding of each step.
        eps = eps_uncond + guidance * (eps_cond - eps_uncond) (Ho & Salimans 2022, arXiv 2207.12598), in float32.
        """
        levels, unet = self.schedule.levels(len(uncond)), self.graphed.for_a_run() if self.cuda_graph else self.unet
        for i, (t, a, a_next) in enumerate(tqdm(levels, disable=not progress, delay=2, leave=False)):
            step_edit = at_step(edit, i, len(levels))
            if guidance == 1:  # eps_uncond would cancel
                eps = self.schedule.to_eps(unet(z.to(self.dtype), t, cond, step_edit), z, a)
            else:
                z_in, text = torch.cat([z, z]), torch.cat([uncond[i].expand_as(cond), cond])
                output = unet(z_in.to(self.dtype), t, text, step_edit, n_uncond=len(z))
                eps_uncond, eps_cond = self.schedule.to_eps(output, z_in, a).chunk(2)
                eps = eps_uncond + guidance * (eps_cond - eps_uncond)
            x0 = pred_x0(z, eps, a)
            z = after_step(step_edit, ddim_step(z, eps, a, a_next))
            yield z, x0

    def record(
        self,
        prompt: str,
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        inversion: SavedRun | None = None,
        latents: Tensor | None = None,
        negative: str = "",
        size: int | tuple[int, int] | None = None,
        progress: bool = True,
    ) -> Recording:
        """Runs one prompt, or the picture of an inversion, and keeps what later edits need of it. Arguments as in `generate`.

        The maps stay on the model's device: 1.9 GB for Stable Diffusion 1.5 at 512 x 512 and 50 steps.
        """
        [prompt] = check_prompts(self.tokenizer, [prompt])
        saved = self.check_saved(inversion, None, (prompt,), steps, guidance, negative, latents, seed)
        seed, steps, guidance = check_numbers(seed, *defaults(steps, guidance, saved), negative)
        if progress:
            height, width = self.first_latents(saved, latents, seed, size, 1).shape[-2:]
            megabytes = map_bytes(self.unet, height, width, steps, self.tokenizer.context) / 1e6
            print(f"recording {prompt!r}: {megabytes:,.0f} MB of maps", file=sys.stderr)
        store = AttentionStore(full=True)
        options = {"inversion": inversion, "latents": latents, "negative": negative, "size": size, "progress": progress}
        result = self.generate(prompt, seed, steps, guidance, store, **options)
        with plain_torch(self.device):
            uncond = self.uncond(saved, negative, result.steps).float()
        return Recording(
            latents=result.trajectory[:, 0],
            pred_x0=result.pred_x0[:, 0],
            uncond=uncond,
            maps={site: maps[:, 0] for site, maps in store.maps.items()},
            weights=self.fingerprint(prompt),
            prompt=prompt,
            negative=negative,
            steps=result.steps,
            guidance=result.guidance,
            dtype=str(self.dtype).removeprefix("torch."),
            cut=None if saved is None else saved.cut,
        )

    def uncond(self, saved: SavedRun | None, negative: str, steps: int) -> Tensor:
        """(steps, T, D): the unconditional embedding of each step, of the saved run or of the negative prompt."""
        uncond = self.encode_text([negative]) if saved is None or saved.uncond is None else saved.uncond
        return uncond.to(self.device, self.dtype).expand(steps, -1, -1)

    def first_latents(self, saved: SavedRun | None, latents: Tensor | None, seed: int, size, prompts: int) -> Tensor:
        """(1 or B, 4, h, w): the noise of the saved run, the latents that were given, or the noise of the seed."""
        latents = latents if saved is None else saved.start
        return self.init_latents(seed, size) if latents is None else self.check_latents(latents, prompts, size)

    def init_latents(self, seed: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """The noise (1, 4, h, w) of a seed: float32, drawn on the CPU so that every device begins with the same numbers."""
        height, width = self.check_size(size)
        generator = torch.Generator(device="cpu").manual_seed(seed)
        shape = (1, self.unet.config.in_channels, height // self.vae.config.factor, width // self.vae.config.factor)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(self.device)

    def fingerprint(self, prompt: str) -> Tensor:
        """Numbers that tell this model, and the tokens that it makes of a prompt, from others; see saved.py."""
        return fingerprint([self.unet, self.text_encoder, self.vae], self.schedule, self.tokenizer([prompt, ""]))

    # ---------------------------------------------------------------- checks that need the model

    def check_size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels; RequestError unless the networks can downsample them."""
        factor = self.vae.config.factor
        return check_size(self.unet.config.sample_size * factor if size is None else size, factor * 2 ** (self.unet.levels - 1))

    def check_latents(self, latents: Tensor, prompts: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """The latents on the device in float32; RequestError unless the UNet can downsample them."""
        shape, channels = tuple(getattr(latents, "shape", ())), self.unet.config.in_channels
        if not isinstance(latents, Tensor) or len(shape) != 4 or shape[0] not in (1, prompts) or shape[1] != channels:
            raise RequestError(f"latents have shape {shape}: give a tensor (1, {channels}, h, w), or ({prompts}, {channels}, h, w)")
        height, width = self.check_size(tuple(side * self.vae.config.factor for side in latents.shape[-2:]))
        if size is not None and self.check_size(size) != (height, width):
            raise RequestError(f"size is {size} and the latents are those of a picture {height} x {width}: leave one of them out")
        return latents.to(self.device, torch.float32)

    def check_saved(self, inversion, recording, prompts, steps, guidance, negative, latents, seed) -> SavedRun | None:
        """The inversion or the recording, if one is given; RequestError unless it was made for this run."""
        saved = given_run(inversion, recording, latents, seed)
        if saved is not None:
            asked = {"prompt": prompts[0], "steps": steps, "guidance": guidance, "negative": None if negative == "" else negative}
            saved.check(self.fingerprint(saved.prompt), self.dtype, **asked)
        return saved

    def check_finite(self, values: Tensor, part: str) -> None:
        """FloatingPointError for nan or inf; asked once, after the work, since each question waits for the device."""
        if not values.isfinite().all():
            raise FloatingPointError(f"the output of {part} is not finite in {self.dtype}: {advice(self.dtype)}")


def defaults(steps: int | None, guidance: float | None, saved: SavedRun | None) -> tuple[int, float]:
    """Steps and guidance that the caller left out: those of the saved run, or 50 and 7.5."""
    own = (STEPS, GUIDANCE) if saved is None else (saved.steps, saved.guidance)
    return own[0] if steps is None else steps, own[1] if guidance is None else guidance
