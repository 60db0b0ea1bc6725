"""A run kept in a file, to be taken up again later: what an Inversion and a Recording share.

One .safetensors file, written whole or not at all; loaded, or refused in one line; and only for the model that made it.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minip2p.errors import PromptError
from minip2p.files import writable, write_whole

NAMES = {"prompt": "source prompt", "steps": "number of steps", "negative": "negative prompt"}


class Kept:
    """What can be done with either. A subclass is a frozen dataclass; `verb` is the command that makes its files."""

    verb: str
    start: Tensor  # (1, 4, h, w), what the run begins from
    path: Tensor | None  # (steps + 1, 4, h, w) in sampling order, where the source is put after each step
    without: Tensor | None  # (1 or steps, T, D), what the half without text is told

    def parts(self) -> tuple[dict[str, Tensor], dict]:
        """The tensors by name, and the rest, which JSON can hold."""
        raise NotImplementedError

    @classmethod
    def from_parts(cls, tensors: dict[str, Tensor], said: dict) -> "Kept":
        """The other way round. KeyError, TypeError or ValueError for the parts of anything else."""
        raise NotImplementedError

    def fits(self, sd, **asked) -> None:
        """PromptError unless a run of `sd` with these settings (None: not said) is one that this was made for."""
        kind = type(self).__name__.lower()
        for name, value in asked.items():
            own = getattr(self, name)
            if value is not None and value != own:
                name = NAMES.get(name, name)
                raise PromptError(f"the {name} is {value!r} and that of the {kind} is {own!r}: use its own, or {self.verb} again")
        ours = fingerprint(sd)
        dtypes = {sd.dtype, getattr(torch, self.dtype)}
        rounding = 8 * max(torch.finfo(dtype).eps for dtype in dtypes) if len(dtypes) > 1 else 32 * torch.finfo(torch.float32).eps
        same = ours.shape == self.weights.shape
        if not same or ((ours[0] - self.weights[0]).abs() > rounding * ours.abs().sum(0)).any():
            raise PromptError(f"the {kind} was made with other weights than these: load those, or {self.verb} again")

    def save(self, path: str | Path) -> None:
        """One .safetensors file, written whole or not at all. PromptError if it cannot be."""
        path = writable(path, (".safetensors",))
        tensors, said = self.parts()
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        metadata = {type(self).__name__.lower(): json.dumps(said)}
        try:
            write_whole(path, lambda file: save_file(tensors, file, metadata))
        except (OSError, SafetensorError) as error:
            raise PromptError(f"cannot write {path} ({error}): make room, or choose another place") from None

    @classmethod
    def load(cls, path: str | Path):
        """What `save` wrote, on the CPU. PromptError, one line, for any other file."""
        path, kind = Path(path).expanduser(), cls.__name__.lower()
        fix = f"give a file that `minip2p {cls.verb}` wrote"
        try:
            with safe_open(path, framework="pt") as file:
                said = json.loads((file.metadata() or {})[kind])
                return cls.from_parts({name: file.get_tensor(name) for name in file.keys()}, said)
        except (OSError, SafetensorError) as error:
            cause = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise PromptError(f"{path} cannot be read ({cause}): {fix}") from None
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise PromptError(f"{path} holds no {kind}: {fix}") from None


def fingerprint(sd) -> Tensor:
    """(2, numbers): the sum and the norm of every weight tensor and of every number of the schedule, on the CPU.

    Not a hash: the same file loaded as float16 and as float32 differs in rounding. That moves a tensor's sum by about the
    rounding of its norm; `Kept.fits` allows a few times as much, and no more. In one dtype only the order of summing differs.
    """
    weights = [weight for network in (sd.unet, sd.text_encoder, sd.vae) for weight in network.parameters()]
    sums = [torch.stack([w.sum(dtype=torch.float32), torch.linalg.vector_norm(w, dtype=torch.float32)]) for w in weights]
    schedule = sd.schedule
    numbers = [*schedule.alphas_cumprod[::100], schedule.steps_offset, schedule.set_alpha_to_one]
    numbers = torch.tensor([*map(float, numbers), float(schedule.prediction_type == "epsilon")])
    return torch.cat([torch.stack(sums, dim=1).cpu(), torch.stack([numbers, numbers.abs()])], dim=1)


def settle(steps: int | None, guidance: float | None, kept) -> tuple[int, float]:
    """What a caller left out: the kept run's own (None: there is none), or 50 steps and guidance 7.5."""
    return (
        getattr(kept, "steps", 50) if steps is None else steps,
        getattr(kept, "guidance", 7.5) if guidance is None else guidance,
    )
