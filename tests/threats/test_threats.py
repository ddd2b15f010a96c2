"""The table of threats: every entry, its settings, and the corruptions against independent references."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.signal
import torch
from conftest import images, scene
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.metrics.objective import BoundObjective
from benchsr.threats.corruptions import gaussian_blur
from benchsr.threats.table import THREATS, Threat, load_threat
from benchsr.threats.variants import Universal

OWN_LR = [name for name, spec in THREATS.items() if spec.kind != "dataset"]
L1 = {"l1_weight": 1.0, "perceptual_weight": 0.0}


def settings(name: str) -> dict[str, float]:
    few = {"steps": 3} if "steps" in THREATS[name].defaults else {}
    return {**{k: v for k, v in L1.items() if k in THREATS[name].defaults}, **few}


def others(threat: Threat, network: nn.Module) -> tuple[BoundObjective | None, Tensor | None]:
    """What attacks are given that need other images: targets, and a perturbation."""
    (lr, hr), goal = scene(network, 2, 12, seed=8), threat.objective
    if threat.spec.others is None or goal is None:
        return None, None
    attack = threat.attack(network)
    return (None, attack.fit(lr, hr)) if isinstance(attack, Universal) else (goal.bind(hr), None)


@pytest.mark.parametrize("name", OWN_LR)
def test_every_threat_makes_images_that_depend_on_seed_and_id_alone(
    name: str, network: nn.Module, trunk: nn.Module
) -> None:
    lr, hr = scene(network, 2, 12)
    threat = load_threat(name, **settings(name))
    bound, shift = others(threat, network)
    first = threat.run(network, lr, hr, ["a", "b"], 3, bound=bound, shift=shift).lr
    torch.manual_seed(0)
    alone = threat.run(network, lr[1:], hr[1:], ["b"], 3, bound=bound[1:] if bound else None, shift=shift).lr
    assert torch.equal(first[1:], alone)
    assert first.shape == lr.shape
    assert 0 <= first.min() <= first.max() <= 1
    unchanged = THREATS["clean"].make, THREATS["partial-clean"].make
    assert torch.equal(first, lr) == (THREATS[name].make in unchanged)


WHOLE = [name for name in OWN_LR if "l1_weight" in THREATS[name].defaults and "margin" not in THREATS[name].defaults]
"""Attacks whose objective can be L1 over the whole image."""


@pytest.mark.parametrize("name", WHOLE)
def test_no_step_of_an_attack_waits_for_the_device(name: str) -> None:
    """On torch's device without values whoever asks for one fails."""
    attack = load_threat(name, **settings(name)).attack(nn.Upsample(scale_factor=4))
    lr, hr = torch.zeros(2, 3, 16, 16, device="meta"), torch.zeros(2, 3, 64, 64, device="meta")
    assert attack.last_iterate(lr, attack.objective.bind(hr), ["a", "b"], 0).shape == lr.shape


def test_an_attack_asks_the_device_as_often_however_many_steps_it_takes(network: nn.Module) -> None:
    asked: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.extend(word for word in ("_local_scalar_dense", "equal.default", "is_nonzero") if word in str(func))
            return func(*args, **kwargs or {})

    counts = []
    for steps in (2, 6):
        asked.clear()
        attack = load_threat("pgd", steps=steps, **L1).attack(network)
        with Watch():  # type: ignore[no-untyped-call]
            attack.run(*scene(network, 1, 12))
        counts.append(len(asked))
    assert 0 < counts[0] == counts[1]


@pytest.mark.parametrize("name", OWN_LR)
def test_settings_can_be_overridden_by_name(name: str) -> None:
    threat = load_threat(name)
    for key, value in threat.settings.items():
        assert load_threat(name, **{key: value}).settings == threat.settings


def test_settings_of_the_paper() -> None:
    assert load_threat("noise").settings == {"sigma": 0.03}
    assert load_threat("blur").settings == {"size": 10, "sigma": 0.3}
    for name in ("fgsm", "bim", "pgd"):
        assert math.isclose(float(load_threat(name).settings["eps"]), 10 / 255)
    cw = load_threat("cw").settings
    assert (cw["c"], cw["lr"], cw["steps"]) == (0.01, 0.01, 6)


def test_noise_has_its_standard_deviation() -> None:
    lr = torch.full((1, 3, 200, 200), 0.5)
    delta = load_threat("noise")(nn.Identity(), lr, torch.full((1, 3, 800, 800), 0.5)) - lr
    assert abs(float(delta.mean())) < 4 * 0.03 / math.sqrt(delta.numel())
    assert abs(float(delta.std()) / 0.03 - 1) < 0.01
    channels = np.corrcoef(delta[0].flatten(1).numpy())
    assert np.abs(channels - np.eye(3)).max() < 0.02


@pytest.mark.parametrize(("size", "sigma"), [(10, 0.3), (10, 1.5), (7, 0.6)])
def test_blur_equals_opencvs_filter_with_its_anchor(size: int, sigma: float) -> None:
    lr, _ = images(1, 24)
    taps = scipy.signal.windows.gaussian(size, sigma)  # cv2.getGaussianKernel is not Gaussian for even sizes
    kernel = (taps / taps.sum())[:, None]
    picture = lr[0].permute(1, 2, 0).numpy()
    expected = cv2.filter2D(picture, cv2.CV_32F, kernel @ kernel.T, borderType=cv2.BORDER_REFLECT_101)
    ours = gaussian_blur(lr, [], size=size, sigma=sigma)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_the_papers_blur_is_a_shift_by_half_a_pixel() -> None:
    ramp = torch.arange(40.0).expand(1, 3, 40, 40).contiguous()
    moved = gaussian_blur(ramp, [], size=10, sigma=0.3)[..., 12:-12, 12:-12]
    torch.testing.assert_close(moved, ramp[..., 12:-12, 12:-12] - 0.5, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["standin-ntire", "standin-aim", "standin-dped"])
def test_standins_leave_correlated_noise(name: str) -> None:
    lr = torch.full((1, 3, 96, 96), 0.5)
    delta = (load_threat(name)(nn.Identity(), lr, torch.full((1, 3, 384, 384), 0.5)) - lr)[0, 1].numpy()
    neighbours = np.corrcoef(delta[:, 1:].ravel(), delta[:, :-1].ravel())[0, 1]
    assert delta.std() > 0.01
    assert neighbours > 0.2


def test_clear_errors() -> None:
    with pytest.raises(UnknownIdError, match="did you mean 'pgd'"):
        load_threat("pdg")
    with pytest.raises(InputError, match="did you mean 'eps'"):
        load_threat("pgd", epsilon=0.1)
    with pytest.raises(InputError, match="steps must be int"):
        load_threat("pgd", steps=2.5)
    with pytest.raises(InputError, match="perceptual_net must be one of vgg16, vgg19; got 'x'"):
        load_threat("pgd", perceptual_net="x")
    with pytest.raises(InputError, match="brings its own LR"):
        load_threat("ntire")(nn.Identity(), *images(1, 12))
    with pytest.raises(InputError, match="not an attack"):
        load_threat("noise").attack(nn.Identity())
