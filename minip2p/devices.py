"""Where to compute and in which precision; and what to do when a precision was not enough."""

import torch

from minip2p.errors import PromptError


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, if it is there; else cuda, mps or cpu, the first that is."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(name for name, available in there.items() if available))
    try:
        found = torch.device(device) if isinstance(device, (str, torch.device)) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in there:
        raise PromptError(f"device {device!r} is unknown here: use one of {', '.join(there)}")
    if not there[found.type] or found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise PromptError(f"device {found} is not available to torch on this machine: leave it out, or use cpu")
    return found


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, by itself or by name; else float16 on cuda and float32 elsewhere."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise PromptError(f"dtype {dtype!r} is unknown: use float32, float16 or bfloat16")
    return found


def advice(dtype: torch.dtype) -> str:
    """What to do about numbers that are not finite in this dtype."""
    if dtype == torch.float16:
        return "its numbers end at 65504, so load the model with dtype bfloat16 or float32"
    return "float16 would not help; look for nan or inf in the weights, in the latents given, or in what your edit returns"
