"""Any metric of pyiqa (Chen and Mo 2022), the extra `benchsr[iqa]`, as `iqa:NAME`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchsr.base.errors import InputError, NotApplicableError, UnavailableError
from benchsr.base.inference import full_float32
from benchsr.base.registry import Registry

PREFIX = "iqa:"

OF_SETS = ("fid", "sfid", "fid_dinov2", "inception_score")
"""Metrics of pyiqa that compare whole sets of images: they have no figure for a single one."""


def about(name: str) -> tuple[bool, bool, str]:
    """Of pyiqa's metric `name`: whether higher is better, whether it needs no reference, and pyiqa's version.

    Raises UnavailableError where pyiqa is not installed, UnknownIdError for a name that it does not know, InputError
    for a metric of whole sets of images.
    """
    try:
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError as error:
        raise UnavailableError(
            f"metric '{PREFIX}{name}' needs pyiqa ({error}): pip install 'benchsr[iqa]', or leave it out of the "
            "protocol's [metrics] names"
        ) from None
    if name in OF_SETS:
        raise InputError(f"metric '{PREFIX}{name}' compares sets of images; benchsr scores one image at a time")
    config = Registry("metric of pyiqa", DEFAULT_CONFIGS)[name]
    return not config.get("lower_better", False), config["metric_mode"] == "NR", f"pyiqa {version('pyiqa')}"


def scorer(name: str) -> Callable[..., Tensor]:
    """pyiqa's metric `name` as a function of `sr` and `hr`, of `sr` alone where it needs no reference.

    Both are (N, 3, H, W) in [0, 1]; it returns (N,) float64, an image at a time. Raises NotApplicableError for images
    that the metric refuses, and UnavailableError where its weights cannot be had.
    """

    def alone(sr: Tensor) -> Tensor:
        return _scores(name, sr)

    def against(sr: Tensor, hr: Tensor) -> Tensor:
        return _scores(name, sr, hr)

    return alone if about(name)[1] else against


def _scores(name: str, *images: Tensor) -> Tensor:
    network = _network(name, images[0].device)
    found = []
    for one in zip(*images, strict=True):
        devices = [one[0].device] if one[0].is_cuda else []
        try:
            with torch.no_grad(), full_float32(), torch.random.fork_rng(devices):
                torch.manual_seed(0)  # some of pyiqa's metrics look at random crops
                value = network(*(image[None].float() for image in one))
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, AssertionError, IndexError, RuntimeError, ValueError) as error:
            size = " x ".join(map(str, one[0].shape[1:]))
            raise NotApplicableError(f"pyiqa's {name} cannot score an image of {size} pixels ({error})") from None
        found.append(torch.as_tensor(value).flatten()[0].double().cpu())
    return torch.stack(found).to(images[0].device)


@cache
def _network(name: str, device: torch.device) -> Callable[..., Any]:
    import pyiqa

    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    try:
        network: Callable[..., Any] = pyiqa.create_metric(name, device=device)
    except Exception as error:  # whatever a stranger's download raises
        raise UnavailableError(f"metric '{PREFIX}{name}': pyiqa cannot make it here ({error})") from error
    return network
