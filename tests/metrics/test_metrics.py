"""Metrics against scikit-image, the lpips package and their definitions written out by hand."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import lpips as lpips_package
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage import data as skimage_data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from toys import FakeLpips

from benchsr.base.errors import InputError
from benchsr.metrics import quality as metrics
from benchsr.metrics.perceptual import lpips_net
from benchsr.metrics.quality import METRICS, Colour, MetricSettings, lpips, psnr, score, ssim

Array = NDArray[Any]


def random_pair(height: int, width: int, n: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    hr = torch.rand((n, 3, height, width), generator=gen)
    return (hr + 0.1 * torch.randn(hr.shape, generator=gen)).clamp(0, 1), hr


def photo_pair(name: str) -> tuple[Tensor, Tensor]:
    """A photograph at 8 bit and itself blurred: far more structure than noise has."""
    hr = torch.from_numpy(getattr(skimage_data, name)()).permute(2, 0, 1)[None, :, :161, :142].float() / 255
    return nn.functional.avg_pool2d(hr, 5, stride=1, padding=2), hr


PAIRS = {
    "random 16x16": random_pair(16, 16),
    "random 33x20": random_pair(33, 20, seed=1),
    "random 64x81": random_pair(64, 81, seed=2),
    "astronaut": photo_pair("astronaut"),
    "chelsea": photo_pair("chelsea"),
    "coffee": photo_pair("coffee"),
}


def as_skimage(x: Tensor, border: int, colour: str) -> Array:
    """(H, W, C) float64 inside the border; luma by scikit-image."""
    image = x[0].permute(1, 2, 0).double().numpy()
    image = image[border : image.shape[0] - border, border : image.shape[1] - border]
    return np.asarray(image if colour == "rgb" else rgb2ycbcr(image)[..., :1] / 255)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("border", [0, 2])
@pytest.mark.parametrize("colour", ["rgb", "y"])
def test_psnr_and_ssim_equal_scikit_image(pair: str, border: int, colour: Any) -> None:
    sr, hr = PAIRS[pair]
    a, b = as_skimage(sr, border, colour), as_skimage(hr, border, colour)
    expected_psnr = peak_signal_noise_ratio(b, a, data_range=1)  # type: ignore[no-untyped-call]
    expected_ssim = structural_similarity(  # type: ignore[no-untyped-call]
        a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert psnr(sr, hr, border, colour).item() == pytest.approx(expected_psnr, abs=1e-4)
    assert ssim(sr, hr, border, colour).item() == pytest.approx(expected_ssim, abs=1e-4)


@pytest.mark.parametrize("pair", PAIRS)
def test_the_ssim_for_other_devices_equals_scikit_image(pair: str) -> None:
    sr, hr = PAIRS[pair]
    on_device = torch.stack([metrics._ssim_torch(a, b) for a, b in zip(sr, hr, strict=True)])
    torch.testing.assert_close(on_device, ssim(sr, hr), atol=1e-5, rtol=0)


def test_ssim_of_one_window_is_its_formula() -> None:
    sr, hr = random_pair(11, 11)
    places = np.arange(11) - 5
    window = np.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for a, b in zip(sr[0].double().numpy(), hr[0].double().numpy(), strict=True):
        mean_a, mean_b = (window * a).sum(), (window * b).sum()
        var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
        covariance = (window * (a - mean_a) * (b - mean_b)).sum()
        numerator = (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4)
        values.append(numerator / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    assert ssim(sr, hr).item() == pytest.approx(np.mean(values), abs=1e-5)


def test_psnr_of_a_known_error() -> None:
    hr = torch.full((2, 3, 4, 4), 0.5)
    sr = hr.clone()
    sr[0] += 0.1
    torch.testing.assert_close(psnr(sr, hr), torch.tensor([20.0, math.inf], dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_border_does_not_count() -> None:
    sr, hr = random_pair(24, 24)
    frame = torch.rand_like(hr)
    frame[..., 4:-4, 4:-4] = sr[..., 4:-4, 4:-4]
    assert psnr(frame, hr, border=4) == psnr(sr, hr, border=4)
    assert ssim(frame, hr, border=4) == ssim(sr, hr, border=4)
    assert psnr(frame, hr, border=3) != psnr(sr, hr, border=3)


def test_luma_runs_from_16_to_235() -> None:
    black, white = torch.zeros(1, 3, 11, 11), torch.ones(1, 3, 11, 11)
    assert psnr(black, white, colour="y").item() == pytest.approx(-20 * math.log10(219 / 255), abs=1e-6)


@cache
def untrained() -> nn.Module:
    """The package's LPIPS with a random trunk and its own heads."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        net: nn.Module = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    return net


@pytest.fixture
def random_lpips(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """`untrained`, put in the place of the network that is fetched."""
    monkeypatch.setattr(metrics, "lpips_net", untrained)
    return untrained()


def test_lpips_equals_the_package(random_lpips: nn.Module) -> None:
    sr, hr = random_pair(48, 40, n=3)
    with torch.no_grad():
        expected = random_lpips(sr, hr, normalize=True).flatten()
    torch.testing.assert_close(lpips(sr, hr), expected.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(lpips(hr, hr), torch.zeros(3, dtype=torch.float64))


def test_lpips_clamps_sr(random_lpips: nn.Module) -> None:
    sr, hr = random_pair(32, 32)
    wide = 2 * sr - 0.5
    assert torch.equal(lpips(wide, hr), lpips(wide.clamp(0, 1), hr))


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["astronaut", "chelsea", "coffee"])
def test_lpips_with_its_trained_weights_equals_its_definition(pair: str) -> None:
    """Zhang et al. 2018, eq. 1, from the network's own layers."""
    sr, hr = PAIRS[pair]
    net: Any = lpips_net()
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    features: list[list[Tensor]] = [[], []]
    with torch.no_grad():
        for stages, image in zip(features, (sr, hr), strict=True):
            x = ((2 * image - 1) - shift.view(1, 3, 1, 1)) / scale.view(1, 3, 1, 1)
            for stage in net.net.children():
                x = stage(x)
                stages.append(x / x.norm(dim=1, keepdim=True))
        heads = [layer.model[1].weight for layer in net.lins]
        expected = sum(((a - b) ** 2 * head).sum(1).mean() for a, b, head in zip(*features, heads, strict=True))
    assert lpips(sr, hr).item() == pytest.approx(float(expected), abs=1e-4)
    assert 0.05 < lpips(sr, hr).item() < 1


@pytest.mark.parametrize("name", METRICS)
def test_an_image_scores_the_same_in_every_batch(name: str, random_lpips: nn.Module) -> None:
    function = METRICS[name].function
    sr, hr = random_pair(40, 36, n=4)
    together = function(sr, hr)
    alone = torch.cat([function(sr[i : i + 1], hr[i : i + 1]) for i in range(4)])
    assert torch.equal(together, alone)
    assert together.shape == (4,)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_direction_and_range_it_declares(name: str, random_lpips: nn.Module) -> None:
    metric = METRICS[name]
    sr, hr = photo_pair("astronaut")
    near, far, equal = (metric.function(x, hr).item() for x in ((sr + hr) / 2, sr, hr))
    assert (equal > near > far) if metric.higher_is_better else (equal < near < far)
    low, high = metric.value_range
    assert all(low <= value <= high for value in (near, far, equal))


IMAGE = torch.full((1, 3, 40, 40), 0.5)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("sr", "hr", "message"),
    [
        (IMAGE, IMAGE[..., :39], r"\(1, 3, 40, 40\) and HR \(1, 3, 40, 39\)"),
        (IMAGE[0], IMAGE[0], r"\(N, 3, H, W\)"),
        (IMAGE[:, :1], IMAGE[:, :1], r"\(N, 3, H, W\)"),
        (IMAGE[:0], IMAGE[:0], r"\(0, 3, 40, 40\)"),
        ((IMAGE * 255).byte(), (IMAGE * 255).byte(), "divide by 255"),
        (IMAGE, IMAGE * 255, "HR is not"),
        (IMAGE * math.nan, IMAGE, "SR is not"),
        (IMAGE, IMAGE * math.nan, "HR is not"),
    ],
)
def test_what_is_no_pair_of_images_is_refused(name: str, sr: Tensor, hr: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        METRICS[name].function(sr, hr)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: psnr(IMAGE * 2.2, IMAGE), "SR is not: clamp"),
        (lambda: psnr(IMAGE, IMAGE, border=20), "border of 20"),
        (lambda: psnr(IMAGE, IMAGE, border=-1), "border of -1"),
        (lambda: ssim(IMAGE, IMAGE, border=15), "11 pixels"),
        (lambda: lpips(IMAGE[..., :31], IMAGE[..., :31]), "32 pixels"),
        (lambda: psnr(IMAGE, IMAGE, colour="lab"), "unknown colour 'lab'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_options_are_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def settings(border: int, colour: Colour, quantise_sr: bool = False) -> MetricSettings:
    return MetricSettings(border=border, colour=colour, quantise_sr=quantise_sr)


def test_score_is_all_figures_under_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", FakeLpips)
    gen = torch.Generator().manual_seed(0)
    sr, hr = (torch.rand(2, 3, 40, 40, generator=gen) for _ in range(2))
    beyond = sr + torch.where(sr > 0.9, 0.2, 0.0)
    found = score(beyond, hr, settings(4, "y", True))
    clamped = beyond.clamp(0, 1)
    rounded = (clamped * 255).round() / 255
    assert list(found) == ["psnr", "ssim", "lpips"]
    assert torch.equal(found["psnr"], psnr(rounded, hr, 4, "y"))
    assert torch.equal(found["ssim"], ssim(rounded, hr, 4, "y"))
    torch.testing.assert_close(found["lpips"], 2 * (clamped - hr).abs().double().flatten(1).mean(1))
    assert not torch.equal(found["psnr"], score(beyond, hr, settings(4, "y"))["psnr"])
    assert not torch.equal(found["psnr"], score(beyond, hr, settings(0, "y", True))["psnr"])


@pytest.mark.parametrize("before", [True, False])
def test_lpips_is_computed_without_tf32(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[bool] = []

    class Net(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            flags.extend([torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32])
            return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setattr("benchsr.metrics.quality.lpips_net", Net)
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = before
        lpips(torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32))
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was
    assert flags == [False, False]
