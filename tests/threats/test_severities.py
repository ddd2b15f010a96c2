"""The corruption suite: monotone in severity, in [0, 1], one noise for all severities, equal to libraries."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor, nn

from benchsr.base.shrinking import bicubic_downscale
from benchsr.threats.corruptions import defocus, motion_blur, other_kernel
from benchsr.threats.severities import KINDS, SEVERITIES
from benchsr.threats.table import THREATS, load_threat


def photo() -> tuple[Tensor, Tensor]:
    """LR (1, 3, 32, 32) and HR of a photograph."""
    hr = torch.from_numpy(skimage.data.astronaut()[64:192, 160:288] / 255).permute(2, 0, 1)[None].float()
    return bicubic_downscale(hr).clamp(0, 1), hr


def corrupted(name: str, lr: Tensor, hr: Tensor) -> Tensor:
    return load_threat(name)(nn.Identity(), lr, hr, ["a"], seed=1)


@pytest.mark.parametrize("kind", KINDS)
def test_lr_gets_worse_with_severity_and_stays_an_image(kind: str) -> None:
    lr, hr = photo()
    made = [corrupted(f"{kind}-{severity}", lr, hr) for severity in SEVERITIES]
    psnr = [-10 * float((image - lr).square().mean().log10()) for image in made]
    assert psnr == sorted(psnr, reverse=True), psnr
    assert len({round(p, 2) for p in psnr}) == len(SEVERITIES)
    assert 10 < psnr[-1] < psnr[0] < 60
    assert all(0 <= image.min() <= image.max() <= 1 for image in made)
    assert torch.equal(made[0], corrupted(f"{kind}-1", lr, hr))
    assert THREATS[f"{kind}-1"].about.strip()


def numpy(x: Tensor) -> np.ndarray:
    return x[0].permute(1, 2, 0).numpy()


def test_kinds_equal_their_references() -> None:
    lr, hr = photo()
    picture = numpy(lr)
    for severity in SEVERITIES:
        photons = KINDS["shot"].at(severity)["photons"]
        counts = numpy(corrupted(f"shot-{severity}", lr, hr)) * float(photons)
        np.testing.assert_allclose(counts, counts.round(), atol=1e-3)
    struck = numpy(corrupted("impulse-5", lr, hr)) != picture
    assert abs(struck.mean() - 0.07) < 0.015
    hsv = cv2.cvtColor(numpy(corrupted("brightness-2", lr, hr)), cv2.COLOR_RGB2HSV)
    before = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV)
    np.testing.assert_allclose(hsv[..., 2], (before[..., 2] + 0.1).clip(0, 1), atol=1e-5)
    mean = picture.mean((0, 1))
    np.testing.assert_allclose(numpy(corrupted("contrast-3", lr, hr)), (picture - mean) * 0.4 + mean, atol=1e-6)
    disk = np.float32([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5
    softened = cv2.GaussianBlur(np.pad(disk, 2), (3, 3), 0.2)
    expected = cv2.filter2D(picture, -1, softened, borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(numpy(defocus(lr, [], radius=1.0, soft=0.2)), expected, atol=1e-5)


def test_the_other_kernels_are_pillows() -> None:
    lr, hr = photo()
    pixels = (numpy(hr) * 255).round().astype(np.uint8)
    shrunk = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX)
    ours = numpy(other_kernel(lr, [], hr, kernel="area"))
    np.testing.assert_allclose(ours, np.asarray(shrunk) / 255, atol=1.01 / 255)  # Pillow rounds after each axis
    bicubic = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(bicubic) / 255 - numpy(lr)).mean() < 0.01, "HR and LR lie upon each other"


def test_motion_smears_along_its_line_alone() -> None:
    """A point spreads along the drawn angle with the standard deviation asked for, and hardly across."""
    point = torch.zeros(1, 3, 21, 21)
    point[..., 10, 10] = 1
    (image,) = motion_blur(point, [torch.Generator().manual_seed(3)], sigma=1.5)[:, 0]
    at = torch.arange(21.0) - 10
    rows, columns = image.sum(1), image.sum(0)
    covariance = torch.tensor(
        [
            [(rows * at.square()).sum(), (image * at[:, None] * at).sum()],
            [(image * at[:, None] * at).sum(), (columns * at.square()).sum()],
        ]
    )
    across, along = torch.linalg.eigvalsh(covariance).sqrt().tolist()
    assert image.sum() == pytest.approx(1, abs=1e-4)
    assert along == pytest.approx(1.5, abs=0.15)
    assert across < 0.6
