"""Which device and which precision to compute with, and advice when a precision was not enough."""

import torch

from minip2p.errors import RequestError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, if torch has it. None: cuda, mps or cpu, the first that is available."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device is None:
        return torch.device(next(name for name in available if available[name]))
    try:
        found = torch.device(device) if isinstance(device, (str, torch.device)) else None
    except RuntimeError:
        found = None
    if found is None or found.type not in available:
        raise RequestError(f"device {device!r} is unknown here: use one of {', '.join(available)}")
    if not available[found.type] or found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise RequestError(f"device {found} is not available to torch on this machine: leave it out, or use cpu")
    return found


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype that was asked for, as a torch dtype or by name. None: float16 on cuda and float32 elsewhere."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else None
    found = DTYPES.get(name, name) if name is not None else dtype
    if found in (torch.float64, "float64", "double"):
        raise RequestError("dtype float64 is not supported, because attention is computed in float32: use float32")
    if found not in DTYPES.values():
        raise RequestError(f"dtype {dtype!r} is unknown: use float32, float16 or bfloat16")
    return found


def advice(dtype: torch.dtype) -> str:
    """What to do when a network's output in this dtype is not finite."""
    if dtype == torch.float16:
        return "float16 ends at 65504, so load the model with dtype bfloat16 or float32"
    return "look for nan or inf in the weights, in the latents given, or in what your edit returns"
