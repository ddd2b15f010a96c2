"""TensorFlow.js's files: what their networks compute, against definitions in NumPy, and how bad ones are refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import images
from hostile import COUNTS, EXTREMES, Survey, jsons
from PIL import Image
from test_models import HEAD

from benchsr.base.downloads import package_file
from benchsr.base.errors import CardError, IntegrityError, ModelError
from benchsr.data.datasets import load_dataset
from benchsr.metrics.quality import psnr
from benchsr.models.cards import PackageSource
from benchsr.models.network import Bicubic, load_network
from benchsr.models.tfjs import read_tfjs
from benchsr.models.zoo import load_card, network_key

CARD = f"""{HEAD}
[[weights]]
kind = "file"
format = "tfjs"
path = "model.json"
"""
SHARDS = ("group1-shard1of2.bin", "group1-shard2of2.bin")
SHAPES = {  # height, width, channels in, filters
    "first": (3, 3, 3, 6),
    "grow": (1, 5, 6, 4),
    "fuse": (1, 1, 10, 6),
    "spread": (3, 3, 6, 48),
    "SR": (3, 3, 3, 3),
}
RNG = np.random.default_rng(0)
KERNELS = {name: RNG.normal(0, np.prod(shape[:3]) ** -0.5, shape).astype("<f4") for name, shape in SHAPES.items()}
BIASES = {name: RNG.normal(0, 0.1, shape[3]).astype("<f4") for name, shape in SHAPES.items()}


def layer(kind: str, name: str, inputs: list[str], **config: Any) -> dict[str, Any]:
    nodes = [[[source, 0, 0, {}] for source in inputs]] if inputs else []
    return {"class_name": kind, "name": name, "config": {"name": name, **config}, "inbound_nodes": nodes}


def convolution(name: str, source: str, activation: str = "linear") -> dict[str, Any]:
    fixed = {"strides": [1, 1], "dilation_rate": [1, 1], "groups": 1, "padding": "same", "use_bias": True}
    shape = {"kernel_size": list(SHAPES[name][:2]), "filters": SHAPES[name][3], "data_format": "channels_last"}
    return layer("Conv2D", name, [source], activation=activation, **shape, **fixed)


def toy_model() -> dict[str, Any]:
    """A network of every kind of layer, as the converter writes it."""
    layers = [
        layer("InputLayer", "LR", [], batch_input_shape=[None, None, None, 3]),
        convolution("first", "LR"),
        convolution("grow", "first"),
        layer("Activation", "relu", ["grow"], activation="relu"),
        layer("Concatenate", "dense", ["first", "relu"], axis=3),
        convolution("fuse", "dense", "relu"),
        layer("MultiplyBeta", "scaled", ["fuse"], beta=0.2),
        layer("Add", "residual", ["first", "scaled"]),
        convolution("spread", "residual"),
        layer("PixelShuffle4x", "shuffle", ["spread"], scale=4),
        convolution("SR", "shuffle"),
    ]
    network = {"name": "generator", "layers": layers, "input_layers": [["LR", 0, 0]], "output_layers": [["SR", 0, 0]]}
    weights = [
        {"name": f"{name}/{part}", "shape": list(values.shape), "dtype": "float32"}
        for name in sorted(SHAPES)  # not the order of the layers
        for part, values in (("kernel", KERNELS[name]), ("bias", BIASES[name]))
    ]
    return {
        "format": "layers-model",
        "generatedBy": "keras v2.10.0",
        "modelTopology": {"backend": "tensorflow", "model_config": {"class_name": "Functional", "config": network}},
        "weightsManifest": [{"paths": list(SHARDS), "weights": weights}],
    }


def toy_numbers() -> bytes:
    return b"".join(KERNELS[name].tobytes() + BIASES[name].tobytes() for name in sorted(SHAPES))


def write(folder: Path, model: bytes, numbers: bytes, more: str = "") -> Path:
    """Files and a card; the first shard ends within a number."""
    contents = {"model.json": model, SHARDS[0]: numbers[:1001], SHARDS[1]: numbers[1001:]}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    shards = ", ".join(f'{{ file = "{name}", sha256 = "{sha256[name]}" }}' for name in SHARDS)
    (folder / "toy.toml").write_text(f'{CARD}sha256 = "{sha256["model.json"]}"\nshards = [{shards}]\n{more}')
    return folder / "toy.toml"


def toy(folder: Path) -> Path:
    return write(folder, json.dumps(toy_model()).encode(), toy_numbers())


def conv2d(x: np.ndarray, name: str) -> np.ndarray:
    """tf.nn.conv2d of one image (h, w, c), padding SAME."""
    kernel = KERNELS[name].astype(float)
    tall, wide = kernel.shape[:2]
    padded = np.pad(x, [(tall // 2, tall // 2), (wide // 2, wide // 2), (0, 0)])
    out = np.zeros((*x.shape[:2], kernel.shape[3]))
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = np.tensordot(padded[i : i + tall, j : j + wide], kernel, 3) + BIASES[name]
    return out


def depth_to_space(x: np.ndarray, block: int) -> np.ndarray:
    """tf.nn.depth_to_space of one image: each pixel's channels are the block x block pixels' colours, by rows."""
    h, w, channels = x.shape
    out = np.zeros((h * block, w * block, channels // block**2))
    for i in range(h):
        for j in range(w):
            pixels = x[i, j].reshape(block, block, -1)
            out[i * block : (i + 1) * block, j * block : (j + 1) * block] = pixels
    return out


def expected(x: np.ndarray) -> np.ndarray:
    first = conv2d(x, "first")
    dense = np.concatenate([first, np.maximum(conv2d(first, "grow"), 0)], axis=2)
    residual = first + 0.2 * np.maximum(conv2d(dense, "fuse"), 0)
    return conv2d(depth_to_space(conv2d(residual, "spread"), 4), "SR")


def test_the_layers_compute_what_tensorflow_says(tmp_path: Path) -> None:
    network = load_network(toy(tmp_path))
    lr, _ = images(2, 7)
    x = lr.clone().requires_grad_()
    sr = network(x)
    answers = np.stack([expected(image.permute(1, 2, 0).double().numpy()) for image in lr])
    torch.testing.assert_close(sr.detach().double(), torch.from_numpy(answers).permute(0, 3, 1, 2), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(sr.square().mean(), x)
    assert gradient.abs().min() > 0
    assert not network.training


def test_the_key_is_that_of_all_files(tmp_path: Path) -> None:
    keys = set()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        numbers = bytearray(toy_numbers())
        numbers[{"a": 0, "b": 4, "c": -4}[name]] ^= 1
        keys.add(network_key(load_card(write(tmp_path / name, json.dumps(toy_model()).encode(), bytes(numbers)))))
    assert len(keys) == 3


Layers = dict[str, dict[str, Any]]


def edited(change: Callable[[dict[str, Any], Layers], object]) -> Callable[[bytes], bytes]:
    """A change of the model and its layers by name, as one of the file's text."""

    def changed(text: bytes) -> bytes:
        model = json.loads(text)
        layers = model["modelTopology"]["model_config"]["config"]["layers"]
        change(model, {layer["name"]: layer for layer in layers})
        return json.dumps(model).encode()

    return changed


def weight(name: str, /, **changes: Any) -> Callable[[bytes], bytes]:
    def change(model: dict[str, Any], _: Layers) -> None:
        (entry,) = (entry for entry in model["weightsManifest"][0]["weights"] if entry["name"] == name)
        entry.update(changes)

    return edited(change)


def config(name: str, /, **changes: Any) -> Callable[[bytes], bytes]:
    return edited(lambda _, layers: layers[name]["config"].update(changes))


def top(name: str, /, **changes: Any) -> Callable[[bytes], bytes]:
    return edited(lambda _, layers: layers[name].update(changes))


def paths(*names: str) -> Callable[[bytes], bytes]:
    return edited(lambda model, _: model["weightsManifest"][0].update(paths=list(names)))


def taking(*names: str) -> list[Any]:
    return [[[name, 0, 0, {}] for name in names]]


REFUSED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no JSON": (lambda text: text[:500], "the file: Invalid JSON"),
    "deep": (lambda text: b"[" * 100_000, "recursion limit"),
    "deep config": (lambda text: text.replace(b"0.2", b"[" * 5000 + b"]" * 5000), "recursion limit"),
    "large": (lambda text: text + b" " * (4 << 20), "larger than 4194304 bytes"),
    "graph model": (lambda text: text.replace(b"layers-model", b"graph-model"), "format: Input should be"),
    "no topology": (edited(lambda model, _: model.pop("modelTopology")), "modelTopology: Field required"),
    "way out": (paths("../../etc/passwd", SHARDS[1]), r"lists \['\.\./\.\./etc/passwd'"),
    "absolute": (paths("/etc/passwd"), "lists"),
    "one shard": (paths(SHARDS[0]), "lists"),
    "twice a shard": (paths(SHARDS[0], *SHARDS), "lists"),
    "code": (top("relu", class_name="Lambda"), r"layer relu \(Lambda\): such layers cannot be read; known: InputLayer"),
    "two lines": (top("relu", class_name="x\n\x1b[31m"), "layers.3.class_name: String should match"),
    "long path": (paths("x" * 10**6), "paths.0: String should match"),
    "unknown activation": (config("relu", activation="gelu"), r"layer relu \(Activation\): activation: .*'relu'"),
    "strides": (config("grow", strides=[2, 2]), r"layer grow \(Conv2D\): strides.0"),
    "even kernel": (config("grow", kernel_size=[2, 3]), r"layer grow \(Conv2D\): kernel_size.0"),
    "valid padding": (config("grow", padding="valid"), r"layer grow \(Conv2D\): padding"),
    "beta NaN": (lambda text: text.replace(b"0.2", b"NaN"), r"layer scaled \(MultiplyBeta\): beta: .*finite"),
    "channels": (top("SR", inbound_nodes=taking("spread")), r"SR/kernel is of shape \(3, 3, 3, 3\), .*3, 3, 48, 3"),
    "sizes": (top("residual", inbound_nodes=taking("LR", "scaled")), "residual .*do not go together"),
    "no inputs": (top("residual", inbound_nodes=[]), "residual .*there are none"),
    "two inputs": (top("SR", inbound_nodes=taking("shuffle", "shuffle")), "takes one input, and has 2"),
    "not a square": (top("shuffle", inbound_nodes=taking("residual")), "6 channels are no multiple of 16"),
    "later": (top("first", inbound_nodes=taking("spread")), "takes spread, which no layer before it gives"),
    "itself": (top("first", inbound_nodes=taking("first")), "takes first, which no layer before it gives"),
    "same name": (top("grow", name="first"), "a layer of that name before"),
    "used twice": (top("first", inbound_nodes=taking("LR") * 2), "inbound_nodes: Tuple should have at most 1"),
    "second output": (top("first", inbound_nodes=[[["LR", 0, 1, {}]]]), "inbound_nodes.0.0.2"),
    "other colours": (config("LR", batch_input_shape=[None, None, None, 1]), "batch_input_shape.3"),
    "fixed size": (config("LR", batch_input_shape=[None, 64, 64, 3]), "batch_input_shape.1"),
    "output": (lambda text: text.replace(b'[["SR", 0, 0]]', b'[["spread", 0, 0]]'), "not its output spread"),
    "many channels": (top("fuse", inbound_nodes=taking(*["first"] * 10)), "takes one input"),
    "growth": (top("dense", inbound_nodes=taking(*["first"] * 1000)), r"layer dense .*6000 channels"),
    "huge kernel": (weight("first/kernel", shape=[1 << 20] * 4), r"need \d+ bytes, and there are"),
    "huge side": (weight("first/kernel", shape=[10**30]), "weights.2.shape.0: Input should be less than"),
    "negative": (weight("first/kernel", shape=[-3, -3, 3, 6]), "weights.2.shape.0: Input should be greater than"),
    "another shape": (weight("first/kernel", shape=[3, 3, 6, 3]), r"first/kernel is of shape \(3, 3, 6, 3\)"),
    "many filters": (config("first", filters=10**9), "filters: Input should be less than"),
    "absent": (weight("first/kernel", name="x/kernel"), "layer first .*there is no weight first/kernel"),
    "twice": (weight("first/kernel", name="SR/kernel"), "SR/kernel: is there twice"),
    "left over": (config("SR", use_bias=False), "the weight SR/bias belongs to no layer"),
    "quantised": (weight("SR/bias", dtype="uint8"), "weights.1.dtype"),
    "quantisation": (weight("SR/bias", quantization={"scale": 1, "min": 0}), "weights.1.quantization"),
}


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_models_are_refused_in_one_line(tmp_path: Path, change: Callable[[bytes], bytes], says: str) -> None:
    card = write(tmp_path, change(json.dumps(toy_model()).encode()), toy_numbers())
    with pytest.raises(IntegrityError, match=says) as caught:
        load_network(card)
    assert "model.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        (toy_numbers()[:-4], "need 12328 bytes, and there are 12324"),
        (toy_numbers() + b"\0", "need 12328 bytes, and there are 12329"),
        (np.array(np.nan, "<f4").tobytes() + toy_numbers()[4:], "SR/kernel: holds NaN or infinity"),
        (toy_numbers()[:-4] + np.array(-np.inf, "<f4").tobytes(), "spread/bias: holds NaN or infinity"),
    ],
    ids=["short", "long", "nan", "inf"],
)
def test_bad_numbers_are_refused(tmp_path: Path, numbers: bytes, says: str) -> None:
    with pytest.raises(IntegrityError, match=says):
        load_network(write(tmp_path, json.dumps(toy_model()).encode(), numbers))


@pytest.mark.parametrize("count", COUNTS)
def test_damage_ends_in_an_error_that_names_the_file(
    count: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    write(tmp_path, b"", toy_numbers())
    files = (tmp_path / "model.json", *(tmp_path / shard for shard in SHARDS))
    survey = Survey(tmp_path, files[0], lambda _: read_tfjs(files), names=("model.json",))
    survey.run(jsons(toy_model()), count, EXTREMES).record(record_property)
    assert survey.refused


def test_another_scale_than_the_cards_is_named(tmp_path: Path) -> None:
    card = toy(tmp_path)
    card.write_text(card.read_text().replace('family = "compact"', 'family = "compact"\nscale = 8'))
    with pytest.raises(ModelError, match="x4, not x8"):
        load_network(card)(images(1, 4)[0])


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"tfjs"', '"pth"', "shards, the files beside model.json"),
        ("shards = [", "#", "shards, the files beside model.json"),
        (SHARDS[0], "../" + SHARDS[0], "shards.0.file"),
    ],
)
def test_cards_name_shards_beside_the_model(tmp_path: Path, old: str, new: str, says: str) -> None:
    card = toy(tmp_path)
    card.write_text(card.read_text().replace(old, new))
    with pytest.raises(CardError, match=says):
        load_card(card)


def test_a_swapped_shard_is_refused(tmp_path: Path) -> None:
    card = toy(tmp_path)
    (tmp_path / SHARDS[1]).write_bytes(b"swapped")
    with pytest.raises(IntegrityError, match=SHARDS[1]):
        load_network(card)


@pytest.mark.slow
def test_esrgan_thick_answers_as_its_package_shows() -> None:
    """The package holds an image and what TensorFlow.js made of it."""
    card = load_card("esrgan-thick-x4")
    (source,) = card.weights
    assert isinstance(source, PackageSource)

    def pixels(member: str, sha256: str) -> torch.Tensor:
        package = (source.package, source.version, source.archive_sha256)
        with Image.open(package_file(*package, f"package/assets/{member}", sha256, archive="npm")) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 255

    lr = pixels("fixture.png", "9c42004f3493b1520d7fcaa908f63bf1e34eb1206ff49ee71724c67fc5ce8294")
    shown = pixels("samples/4x/result.png", "1b92a6874ce10c56314d0d6ba76e83b83dc8398382eadce319c7bc9a932d1022")
    with torch.no_grad():
        sr = load_network(card)(lr).clamp(0, 1)
    away = ((sr * 255).round() - shown * 255).abs()
    assert away.max() <= 1
    assert (away > 0).double().mean() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("photo", ["astronaut", "chelsea"])
def test_esrgan_thick_beats_bicubic_in_psnr(photo: str) -> None:
    sample = load_dataset("photos", crop=32).sample(photo)
    lr, hr = sample.lr[None], sample.hr[None]
    with torch.no_grad():
        ours, bicubic = (psnr(network(lr).clamp(0, 1), hr) for network in (load_network("esrgan-thick-x4"), Bicubic(4)))
    assert float(ours) > float(bicubic)
