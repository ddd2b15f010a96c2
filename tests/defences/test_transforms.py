"""The table of defences: each against a library or another way to compute it, and what an attack sees of it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import images
from PIL import Image
from torch import Tensor, nn

from benchsr.base.errors import InputError, UnknownIdError
from benchsr.base.rng import Randomised
from benchsr.defences.table import DEFENCES, deploy, deployment
from benchsr.defences.transforms import SelfEnsemble, Transformed, straight_through
from benchsr.models.cards import CardDefence
from benchsr.models.network import Bicubic
from benchsr.models.zoo import defended, load_card

SMALL = {"n": 3}


def made(name: str, network: nn.Module, **settings: float) -> nn.Module:
    defence = DEFENCES[name]
    fewer = {k: v for k, v in SMALL.items() if k in defence.defaults}
    return defence.make(network, seed=0, **{**defence.defaults, **fewer, **settings})


class Identity(nn.Module):
    """A "network" of scale one, so that what stands around it can be seen."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


@pytest.mark.parametrize("name", DEFENCES)
def test_every_defence_answers_and_lets_a_gradient_through(name: str, network: nn.Module) -> None:
    lr, _ = images(2, 12)
    model = made(name, network)
    x = lr.clone().requires_grad_()
    sr = model(x)
    assert sr.shape == (2, 3, 48, 48)
    assert torch.equal(sr, model(lr)), "the same image, the same draws"
    assert not torch.equal(sr, network(lr))
    assert isinstance(model, Randomised) == DEFENCES[name].random
    (grad,) = torch.autograd.grad(sr.square().sum(), x)
    assert torch.isfinite(grad).all()
    assert (grad != 0).float().mean() > 0.3, "a median passes on the gradient of one pixel of nine"
    assert DEFENCES[name].about.endswith(".")


@pytest.mark.parametrize("name", [name for name, defence in DEFENCES.items() if defence.random])
def test_draws_depend_on_image_and_purpose_alone(name: str, network: nn.Module) -> None:
    lr, _ = images(2, 12)
    model = made(name, network)
    both, one = model(lr, ["a", "b"], "x"), model(lr[1:], ["b"], "x")
    torch.testing.assert_close(both[1:], one)
    assert not torch.equal(one, model(lr[1:], ["b"], "y"))
    assert not torch.equal(one, model(lr[1:], ["c"], "x"))


def transformed(name: str, x: Tensor, **settings: float) -> np.ndarray:
    picture: np.ndarray = made(name, Identity(), **settings)(x)[0].permute(1, 2, 0).numpy()
    return picture


def test_transforms_equal_their_references() -> None:
    x, _ = images(1, 20)
    picture = x[0].permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    eight = (picture * 255).round().astype(np.uint8)
    Image.fromarray(eight).save(buffer, format="JPEG", quality=40, subsampling=2)
    expected = {
        ("jpeg", "quality", 40): np.asarray(Image.open(buffer)) / 255,
        ("bit-depth", "bits", 3): (picture * 7).round() / 7,
        ("median-filter", "size", 3): scipy.ndimage.median_filter(picture, (3, 3, 1), mode="mirror"),
        ("gaussian-blur", "sigma", 1.0): scipy.ndimage.gaussian_filter(picture, (1, 1, 0), mode="mirror", truncate=3),
    }
    for (name, setting, value), reference in expected.items():
        np.testing.assert_allclose(transformed(name, x, **{setting: value}), reference, atol=1e-6, err_msg=name)


def test_resize_keeps_what_is_smooth_and_loses_a_checkerboard() -> None:
    ramp = torch.linspace(0.2, 0.8, 24).expand(1, 3, 24, 24).contiguous()
    kept = made("resize", Identity())(ramp)
    torch.testing.assert_close(kept[..., 6:-6], ramp[..., 6:-6], atol=2e-3, rtol=0)
    board = 0.5 + 0.2 * (-1.0) ** (torch.arange(24)[:, None] + torch.arange(24)[None])
    lost = made("resize", Identity())(board.expand(1, 3, 24, 24).contiguous())
    assert (lost - 0.5).abs()[..., 6:-6, 6:-6].max() < 0.02


def test_the_denoiser_removes_noise_and_leaves_a_flat_image() -> None:
    flat = torch.full((1, 3, 24, 24), 0.5)
    noisy = flat + 0.03 * torch.randn(flat.shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(transformed("denoise", flat), 0.5, atol=1e-6)
    assert transformed("denoise", noisy).std() < 0.4 * float(noisy.std())


def test_random_size_and_place_come_back_to_where_they_were() -> None:
    """Of a network that only interpolates, the answer is nearly that without the defence: nothing is shifted."""
    coarse, _ = images(1, 6)
    x = nn.functional.interpolate(coarse, size=24, mode="bicubic", antialias=True).clamp(0, 1)
    network = Bicubic(4)
    plain = network(x)
    model = made("random-resize-pad", network)
    answers = [model(x, ["a"], f"{k}") for k in range(6)]
    for answer in answers:
        assert (answer - plain).abs().mean() < 0.01
    shifted = (torch.roll(plain, 2, -1) - plain).abs().mean()
    assert shifted > 0.01, "half a pixel of LR would have been seen"
    assert len({float(answer.sum()) for answer in answers}) == 6


def test_the_ensemble_is_the_mean_of_eight_views(network: nn.Module) -> None:
    x, _ = images(1, 12)
    views = []
    for mirrored in (False, True):
        for turns in range(4):
            seen = np.rot90(x.flip(-1).numpy() if mirrored else x.numpy(), turns, (2, 3))
            back = np.rot90(network(torch.from_numpy(seen.copy())).numpy(), -turns, (2, 3))
            views.append(np.flip(back, -1) if mirrored else back)
    expected = torch.from_numpy(np.mean(views, axis=0))
    torch.testing.assert_close(SelfEnsemble(network)(x), expected, atol=1e-5, rtol=1e-5)
    turned = SelfEnsemble(network)(x.rot90(1, (-2, -1))).rot90(-1, (-2, -1))
    torch.testing.assert_close(turned, SelfEnsemble(network)(x), atol=1e-5, rtol=1e-5)


def test_straight_through_is_the_answer_with_the_gradient_of_the_identity() -> None:
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    changed = (x.detach() * 7).round() / 7
    out = straight_through(x, changed)
    assert torch.equal(out, changed)
    (grad,) = torch.autograd.grad((out * torch.arange(8.0)).sum(), x)
    assert torch.equal(grad, torch.arange(8.0).expand_as(x))


def test_where_the_transform_is_the_identity_bpda_is_the_true_gradient(network: nn.Module) -> None:
    levels = (torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    x = levels.clone().requires_grad_()
    (true,) = torch.autograd.grad(network(x).square().sum(), x)
    (estimate,) = torch.autograd.grad(made("bit-depth", network, bits=8)(x).square().sum(), x)
    torch.testing.assert_close(estimate, true, atol=1e-5, rtol=1e-5)


def test_a_differentiable_transform_has_its_own_gradient() -> None:
    weight = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    x = torch.rand(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for name in (n for n, d in DEFENCES.items() if d.differentiable and not d.random):
        model = made(name, Identity())
        assert torch.autograd.gradcheck(lambda v, model=model: (model(v) * weight).sum(), x), name


def test_settings_are_checked_and_spelled_out() -> None:
    card = defended(load_card("bicubic"), "jpeg")
    assert (card.id, card.paper_row) == ("jpeg+bicubic", False)
    found = deployment(card, "clean")
    assert found is not None
    assert found.settings == (("quality", 75),)
    assert isinstance(deploy(load_card("jpeg+bicubic"), "clean", Bicubic(4)), Transformed)
    smoothed = deployment(load_card("mrs+bicubic"), "clean")
    assert smoothed == ("mrs", (("n", 21), ("sigma", 0.06)))
    with pytest.raises(UnknownIdError, match="did you mean 'jpeg'"):
        deployment(defended(load_card("bicubic"), "jpg"), "clean")
    with pytest.raises(UnknownIdError, match="did you mean 'bicubic'"):
        load_card("jpeg+bicubik")
    with pytest.raises(InputError, match="deployed with a defence already"):
        load_card("jpeg+mrs-impressionism-ntire")
    for settings, words in (({"qualty": 3}, "did you mean 'quality'"), ({"quality": "low"}, "quality must be int")):
        wrong = card.model_copy(update={"defence": CardDefence(name="jpeg", settings=settings)})
        with pytest.raises(InputError, match=words):
            deployment(wrong, "clean")
