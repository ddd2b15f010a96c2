"""What code that is not ours may have changed of torch in this process, and how to put it back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch


class _Setting(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], object]


def _attribute(of: Any, name: str) -> _Setting:
    return _Setting(partial(getattr, of, name), partial(setattr, of, name))


_BACKENDS: Any = torch.backends  # whose flags are properties that type checkers do not see

SETTINGS = {
    "number of threads": _Setting(torch.get_num_threads, torch.set_num_threads),
    "default dtype": _Setting(torch.get_default_dtype, torch.set_default_dtype),
    "default device": _Setting(
        torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)
    ),
    "gradients": _Setting(torch.is_grad_enabled, torch.set_grad_enabled),
    "deterministic algorithms": _Setting(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "precision of float32 products": _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    **{
        f"{backend}.{flag}": _attribute(getattr(_BACKENDS, backend), flag)
        for backend, flags in {"cudnn": ("enabled", "benchmark", "deterministic"), "mkldnn": ("enabled",)}.items()
        for flag in flags
    },
    **{
        f"autocast on {device}": _Setting(
            partial(torch.is_autocast_enabled, device), partial(torch.set_autocast_enabled, device)
        )
        for device in ("cpu", "cuda")
    },
}
"""What any figure that is computed later in this process hangs on, by what messages call it."""


class Snapshot:
    """torch's settings as they are now. Random generators are none of them: whatever we draw has one of its own."""

    def __init__(self) -> None:
        self._settings = {name: setting.get() for name, setting in SETTINGS.items()}

    def restore(self) -> list[str]:
        """Make them so again; returns the names of those that were others."""
        changed = [name for name, setting in SETTINGS.items() if setting.get() != self._settings[name]]
        for name in changed:
            SETTINGS[name].set(self._settings[name])
        return changed
