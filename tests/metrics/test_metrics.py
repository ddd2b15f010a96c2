"""Metrics against scikit-image, the lpips package and their definitions written out by hand."""

from __future__ import annotations

import math
import runpy
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import lpips as lpips_package
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from skimage import data as skimage_data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from toys import FakeLpips

from benchsr.base.downloads import package_file
from benchsr.base.errors import InputError, NotApplicableError
from benchsr.base.shrinking import bicubic_downscale
from benchsr.metrics import perceptual
from benchsr.metrics import quality as metrics
from benchsr.metrics.perceptual import Dists, dists_net, lpips_net
from benchsr.metrics.quality import (
    METRICS,
    Colour,
    Metric,
    MetricSettings,
    dists,
    lpips,
    lr_psnr,
    ms_ssim,
    psnr,
    psnr_y,
    score,
    ssim,
    ssim_y,
)

Array = NDArray[Any]


def random_pair(height: int, width: int, n: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    hr = torch.rand((n, 3, height, width), generator=gen)
    return (hr + 0.1 * torch.randn(hr.shape, generator=gen)).clamp(0, 1), hr


def photo(name: str, height: int, width: int) -> Tensor:
    image = torch.from_numpy(getattr(skimage_data, name)()).permute(2, 0, 1)[None]
    return image[..., :height, :width].float() / 255


def photo_pair(name: str) -> tuple[Tensor, Tensor]:
    """A photograph at 8 bit and itself blurred: far more structure than noise has."""
    hr = photo(name, 161, 142)
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
    if colour == "y":
        assert psnr_y(sr, hr, border).item() == pytest.approx(expected_psnr, abs=1e-4)
        assert ssim_y(sr, hr, border).item() == pytest.approx(expected_ssim, abs=1e-4)


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


def thin_trunk() -> nn.Sequential:
    """VGG-16's layers up to conv5_3, of two channels each."""
    layers: list[nn.Module] = []
    for stage, convolutions in enumerate((2, 2, 3, 3, 3)):
        layers += [nn.MaxPool2d(2)] * bool(stage)
        for k in range(convolutions):
            layers += [nn.Conv2d(3 if stage == k == 0 else 2, 2, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


@cache
def untrained_dists() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Dists(thin_trunk(), *torch.rand(2, 13)).requires_grad_(False)


@pytest.fixture
def _untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random networks in the place of those that are fetched."""
    monkeypatch.setattr(metrics, "lpips_net", untrained)
    monkeypatch.setattr(metrics, "dists_net", untrained_dists)


def figures(name: str, sr: Tensor, hr: Tensor, lr: Tensor | None = None) -> Tensor:
    """What the metric `name` gives; LR is made of HR."""
    given = {"sr": sr, "hr": hr, "lr": bicubic_downscale(hr) if lr is None else lr, "border": 0, "colour": "rgb"}
    return METRICS[name](given)


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
@pytest.mark.usefixtures("_untrained")
def test_an_image_scores_the_same_in_every_batch(name: str) -> None:
    side = 164 if name == "ms-ssim" else 36
    sr, hr = random_pair(side + 4, side, n=3)
    together = figures(name, sr, hr)
    alone = torch.cat([figures(name, sr[i : i + 1], hr[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)
    assert together.shape == (3,)
    assert together.dtype == torch.float64


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.usefixtures("_untrained")
def test_a_metric_has_the_direction_and_range_it_declares(name: str) -> None:
    metric = METRICS[name]
    hr = photo("astronaut", 172, 164)
    sr = nn.functional.avg_pool2d(hr, 5, stride=1, padding=2)
    near, far, equal = (figures(name, x, hr).item() for x in ((sr + hr) / 2, sr, hr))
    assert (equal > near > far) if metric.higher_is_better else (equal < near < far)
    low, high = metric.value_range
    assert all(low <= value <= high for value in (near, far, equal))


def luminance_and_contrast(a: Array, b: Array) -> tuple[float, float]:
    """Mean SSIM and mean contrast-structure of one channel, windows inside the image alone."""
    window = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def local(x: Array) -> Array:
        return np.asarray(correlate1d(correlate1d(x, window, axis=0), window, axis=1)[5:-5, 5:-5])

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    contrast = (2 * (local(a * b) - mean_a * mean_b) + 9e-4) / (var_a + var_b + 9e-4)
    luminance = (2 * mean_a * mean_b + 1e-4) / (mean_a**2 + mean_b**2 + 1e-4)
    return float((luminance * contrast).mean()), float(contrast.mean())


@pytest.mark.parametrize("colour", ["rgb", "y"])
def test_ms_ssim_equals_its_definition(colour: Any) -> None:
    """Wang et al. 2003, eq. 7, with their weights of the five scales."""
    hr = photo("coffee", 200, 184)
    sr = (nn.functional.avg_pool2d(hr, 3, stride=1, padding=1) * 0.9).clamp(0, 1)
    a, b = (as_skimage(x, 4, colour) for x in (sr, hr))
    channels = []
    for k in range(a.shape[2]):
        x, y, product = a[..., k], b[..., k], 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            whole, contrast = luminance_and_contrast(x, y)
            product *= (whole if scale == 4 else contrast) ** weight
            x, y = (
                (z.reshape(z.shape[0] // 2, 2, z.shape[1] // 2, 2).mean((1, 3)) for z in (x, y))
                if scale < 4
                else (x, y)
            )
        channels.append(product)
    assert ms_ssim(sr, hr, 4, colour).item() == pytest.approx(np.mean(channels), abs=1e-6)


def test_ms_ssim_of_small_images_says_what_it_needs() -> None:
    sr, hr = random_pair(168, 168)
    assert ms_ssim(sr, hr, border=3).shape == (1,)
    with pytest.raises(NotApplicableError, match="border of 4 must leave 161 pixels"):
        ms_ssim(sr, hr, border=4)


def test_lr_psnr_compares_the_shrunk_sr_with_the_clean_lr() -> None:
    hr = PAIRS["astronaut"][1][..., :160, :140]
    lr = bicubic_downscale(hr)
    sr = nn.functional.avg_pool2d(hr, 5, stride=1, padding=2)
    assert lr_psnr(hr, lr).item() == math.inf
    a, b = as_skimage(bicubic_downscale(sr), 0, "rgb"), as_skimage(lr, 0, "rgb")
    expected = peak_signal_noise_ratio(b, a, data_range=1)  # type: ignore[no-untyped-call]
    assert lr_psnr(sr, lr).item() == pytest.approx(expected, abs=1e-4)
    with pytest.raises(InputError, match="hr must be 2, 3, 4 or 8 times lr"):
        lr_psnr(hr[..., :156, :], lr)


def test_dists_equals_its_definition() -> None:
    """Ding et al. 2020, eq. 4 to 7, and their pooling by a 3 x 3 Hann window, with numpy and scipy."""
    torch.manual_seed(0)
    trunk, weights = thin_trunk(), torch.rand(2, 13)
    sr, hr = random_pair(40, 32, n=2)
    alpha, beta = (weights / weights.sum()).double().numpy()
    window = np.array([0.25, 0.5, 0.25])

    def features(x: Tensor) -> list[Array]:
        found = [x[0].double().numpy()]
        y = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        for layer in trunk:
            if isinstance(layer, nn.MaxPool2d):
                found.append(y[0].double().numpy())
                squares = correlate1d(
                    correlate1d(found[-1] ** 2, window, 1, mode="constant"), window, 2, mode="constant"
                )
                y = torch.from_numpy(np.sqrt(squares[:, ::2, ::2] + 1e-12)).float()[None]
            else:
                y = layer(y)
        return [*found, y[0].double().numpy()]

    expected = []
    with torch.no_grad():
        for a, b in zip(sr.split(1), hr.split(1), strict=True):
            channels = [pair for x, y in zip(features(a), features(b), strict=True) for pair in zip(x, y, strict=True)]
            likeness = 0.0
            for (x, y), texture, structure in zip(channels, alpha, beta, strict=True):
                likeness += texture * (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
                covariance = np.cov(x.ravel(), y.ravel(), bias=True)
                likeness += structure * (2 * covariance[0, 1] + 1e-6) / (covariance.trace() + 1e-6)
            expected.append(1 - likeness)
        found = Dists(trunk, *weights)(sr, hr)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["astronaut", "chelsea"])
def test_dists_equals_its_authors_code(pair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their module, run from the wheel with the trunk that is fetched here and the weights beside it."""
    ours: Any = dists_net()
    sha256 = "da9162307ae51bc58ffe259e7e778973e8586286652d36c3e9885e94bc269da8"
    file = package_file(*perceptual._DISTS, "DISTS_pytorch/DISTS_pt.py", sha256)
    trunk = [layer for stage in ours.stages for layer in (nn.Identity(), *stage)][1:]
    monkeypatch.setattr("torchvision.models.vgg16", lambda pretrained: SimpleNamespace(features=trunk))
    theirs = runpy.run_path(str(file))["DISTS"](load_weights=False)
    learned = torch.load(file.with_name("weights.pt"), weights_only=True)
    theirs.alpha.data, theirs.beta.data = learned["alpha"], learned["beta"]
    sr, hr = PAIRS[pair]
    assert dists(sr, hr).item() == pytest.approx(float(theirs(sr, hr).detach()), abs=1e-5)
    assert 0.05 < dists(sr, hr).item() < 1


def test_a_metric_may_only_ask_for_what_there_is() -> None:
    with pytest.raises(InputError, match="'mine' asks for mask; it can be given: sr, hr, lr, border, colour"):
        Metric("mine", "Mine", "", True, lambda sr, mask: sr)
    with pytest.raises(InputError, match="does not ask for sr"):
        Metric("mine", "Mine", "", True, lambda hr, lr: hr)


IMAGE = torch.full((1, 3, 40, 40), 0.5)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "hr" in metric.asks])
@pytest.mark.parametrize(
    ("sr", "hr", "message"),
    [
        (IMAGE, IMAGE[..., :39], r"\(1, 3, 40, 40\) and HR \(1, 3, 40, 39\)"),
        (IMAGE[0], IMAGE[0], r"\(N, 3, H, W\)"),
        (IMAGE[:, :1], IMAGE[:, :1], r"\(N, 3, H, W\)"),
        (IMAGE[:0], IMAGE[:0], r"\(0, 3, 40, 40\)"),
        ((IMAGE * 255).byte(), (IMAGE * 255).byte(), "divide by 255"),
        (IMAGE, IMAGE * 255, "HR is not"),
        (IMAGE, IMAGE - 1, "HR is not"),
        (IMAGE * math.nan, IMAGE, "SR is not"),
        (IMAGE, IMAGE * math.nan, "HR is not"),
    ],
)
def test_what_is_no_pair_of_images_is_refused(name: str, sr: Tensor, hr: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        figures(name, sr, hr, IMAGE)


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
    lr = bicubic_downscale(hr)

    def scored(settings: MetricSettings) -> dict[str, Tensor]:
        return score(beyond, hr, lr, settings).figures

    found = scored(settings(4, "y", True))
    clamped = beyond.clamp(0, 1)
    rounded = (clamped * 255).round() / 255
    assert list(found) == ["psnr", "ssim", "lpips"]
    assert torch.equal(found["psnr"], psnr(rounded, hr, 4, "y"))
    assert torch.equal(found["ssim"], ssim(rounded, hr, 4, "y"))
    torch.testing.assert_close(found["lpips"], 2 * (clamped - hr).abs().double().flatten(1).mean(1))
    assert not torch.equal(found["psnr"], scored(settings(4, "y"))["psnr"])
    assert not torch.equal(found["psnr"], scored(settings(0, "y", True))["psnr"])


def test_what_cannot_be_scored_says_why_and_leaves_the_rest() -> None:
    sr, hr = random_pair(40, 40)
    found = score(sr, hr, bicubic_downscale(hr), MetricSettings(names=("ms-ssim", "psnr-y", "lr-psnr"), border=4))
    assert list(found.figures) == ["psnr-y", "lr-psnr"]
    assert found.figures["psnr-y"] == psnr((sr * 255).round() / 255, hr, 4, "y")
    assert found.figures["lr-psnr"] == lr_psnr(sr, bicubic_downscale(hr))
    assert found.lacking == {"ms-ssim": "a border of 4 must leave 161 pixels a side; the images are (1, 3, 40, 40)"}


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
