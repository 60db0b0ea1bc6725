"""A source run that can be kept in a file and edited later: what an Inversion and a Recording share.

The file is one .safetensors file, written whole or not at all. It is refused in one line if it was made for another model,
prompt or setting.
"""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minip2p.attention import AttentionEdit
from minip2p.checks import brief, is_number
from minip2p.errors import PromptError, RequestError
from minip2p.images import fit_mask
from minip2p.save import writable, write_whole
from minip2p.scheduler import Schedule

NAMES = {"prompt": "source prompt", "steps": "number of steps", "negative": "negative prompt"}


class SavedRun:
    """A source run; `generate` asks it for the noise, the unconditional embedding and what it adds to an edit.

    Subclasses are frozen dataclasses. `command` is the command that makes their files.
    """

    command: str
    prompt: str
    steps: int
    guidance: float
    dtype: str  # of the model that made it
    weights: Tensor  # (2, numbers), the fingerprint of the model
    uncond: Tensor | None  # (1 or steps, T, D), the unconditional embedding in sampling order; None: that of the negative prompt
    cut: dict | None  # of an inverted picture: the arguments size, picture and crop of `images.fit_mask`

    @property
    def start(self) -> Tensor:
        """(1, 4, h, w): the noise that the run begins with."""
        raise NotImplementedError

    @property
    def fit_mask(self) -> Callable[[Tensor], Tensor] | None:
        """Cuts and resizes a user's mask as the inverted picture was cut and resized; None if there was no picture."""
        return None if self.cut is None else partial(fit_mask, **self.cut)

    def prompts_to_run(self, prompts: tuple[str, ...]) -> tuple[str, ...]:
        """The prompts that the network must run; by default all of them."""
        return prompts

    def around(self, edit: AttentionEdit) -> AttentionEdit:
        """The edit together with what this run adds to it."""
        return edit

    def complete(self, edit: AttentionEdit, latents: Tensor, pred_x0: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (steps + 1, prompts run, 4, h, w) and predicted x0 (steps, ...) -> those of all prompts, after a run with
        the edit that `around` returned."""
        return latents, pred_x0

    def to_file(self) -> tuple[dict[str, Tensor], dict]:
        """The tensors by name, and the values that JSON can hold."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return tensors, {name: value for name, value in vars(self).items() if name not in tensors}

    @classmethod
    def from_file(cls, tensors: dict[str, Tensor], values: dict) -> "SavedRun":
        """The inverse of `to_file`. KeyError, TypeError or ValueError for the content of any other file."""
        raise NotImplementedError

    def check(self, fingerprint: Tensor, dtype: torch.dtype, **asked) -> None:
        """RequestError unless this run was made by the model with this fingerprint, with these settings (None: not given)."""
        kind = type(self).__name__.lower()
        for name, value in asked.items():
            own = getattr(self, name)
            if value is None or value == own or is_number(value) and is_number(own) and math.isclose(value, own, rel_tol=1e-6):
                continue
            name = NAMES.get(name, name)
            error = PromptError if "prompt" in name else RequestError
            raise error(
                f"the {name} is {brief(value)} and that of the {kind} is {brief(own)}: use its own, or {self.command} again"
            )
        dtypes = {dtype, getattr(torch, self.dtype)}
        rounding = 8 * max(torch.finfo(kind).eps for kind in dtypes) if len(dtypes) > 1 else 32 * torch.finfo(torch.float32).eps
        same = fingerprint.shape == self.weights.shape
        if not same or ((fingerprint[0] - self.weights[0]).abs() > rounding * fingerprint.abs().sum(0)).any():
            raise RequestError(f"the {kind} was made by a model with other weights or settings: load that one, or {self.command} again")

    def save(self, path: str | Path) -> None:
        """Writes one .safetensors file, whole or not at all. RequestError if it cannot be written."""
        path = writable(path, (".safetensors",))
        tensors, values = self.to_file()
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        metadata = {type(self).__name__.lower(): json.dumps(values)}
        try:
            write_whole(path, lambda file: save_file(tensors, file, metadata))
        except SafetensorError as error:
            raise RequestError(f"cannot write {path} ({error}): make room, or choose another place") from None

    @classmethod
    def load(cls, path: str | Path):
        """Reads what `save` wrote, onto the CPU. RequestError, one line, for any other file."""
        path, kind = Path(os.path.expanduser(path)), cls.__name__.lower()
        fix = f"give a file that `minip2p {cls.command}` wrote, in this version"
        try:
            with torch.inference_mode(False), safe_open(path, framework="pt") as file:
                values = json.loads((file.metadata() or {})[kind])
                # JSON has lists where Python has tuples.
                values["cut"] = values["cut"] and {name: value and tuple(value) for name, value in values["cut"].items()}
                return cls.from_file({name: file.get_tensor(name) for name in file.keys()}, values)
        except (OSError, SafetensorError) as error:
            cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise RequestError(f"{path} cannot be read ({cause}): {fix}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise RequestError(f"{path} holds no {kind}: {fix}") from None


def given_run(inversion, recording, latents: Tensor | None, seed: int) -> SavedRun | None:
    """The inversion or the recording, or None. RequestError for what is neither, and for a second source of the noise."""
    sources = {"inversion": inversion, "recording": recording, "latents": latents}
    given = [name for name, source in sources.items() if source is not None]
    if len(given) > 1:
        raise RequestError(f"{given[0]} and {given[1]} each bring their own noise: leave one of them out")
    if given and seed != 0:
        raise RequestError(f"seed is {seed!r}, which has no effect, because the noise is that of the {given[0]}: leave one of them out")
    for kind, made_by in (("inversion", "invert"), ("recording", "record")):
        saved = sources[kind]
        if saved is not None and (not isinstance(saved, SavedRun) or type(saved).__name__.lower() != kind):
            raise RequestError(f"{kind} is {saved!r:.60}: give what `{made_by}` returned, or {kind.title()}.load(file)")
    return recording if inversion is None else inversion


def fingerprint(networks: list[nn.Module], schedule: Schedule, tokens: Tensor) -> Tensor:
    """(2, numbers), on the CPU: of each weight tensor the sum and the norm; each number of the schedule and its absolute value.
    The last 32 are the bits of a checksum of the networks' settings and of a prompt's tokens.

    The weights have no checksum, because the same file loaded as float16 and as float32 differs in rounding. Rounding changes
    a tensor's sum by about the rounding of its norm, and `SavedRun.check` allows a few times that. In one dtype only the order
    of the summation differs.
    """
    weights = [weight for network in networks for weight in network.parameters()]
    sums = [torch.stack([w.sum(dtype=torch.float32), torch.linalg.vector_norm(w, dtype=torch.float32)]) for w in weights]
    numbers = [*schedule.alphas_cumprod[::100], schedule.steps_offset, schedule.set_alpha_to_one]
    numbers += [schedule.prediction_type == "epsilon", schedule.timestep_spacing == "leading"]
    # sample_size is only the default size of pictures, and single files do not say it.
    settings = [vars(network.config) | {"sample_size": None} for network in networks]
    checksum = crc32(repr((settings, tokens.tolist())).encode())
    numbers += [checksum >> bit & 1 for bit in range(32)]
    numbers = torch.tensor([float(number) for number in numbers], dtype=torch.float32, device="cpu")
    return torch.cat([torch.stack(sums, dim=1).cpu(), torch.stack([numbers, numbers.abs()])], dim=1)
