"""Downscaling against MATLAB's algorithm and images; reading any image; data sets and folders."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchsr.base.errors import InputError, UnavailableError, UnknownIdError
from benchsr.base.pairs import SCALES, Scale
from benchsr.base.registry import Registry
from benchsr.base.shrinking import Boundary, bicubic_downscale
from benchsr.data.cards import DATASETS, DataCard, Made
from benchsr.data.datasets import load_dataset, load_sample
from benchsr.data.images import read_image, write_image
from benchsr.metrics.quality import psnr

Array = NDArray[np.float64]

MATLAB = Path(os.environ.get("BENCHSR_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
"""A folder that holds set5 and set14 as *_HR.png and *_LR.png, the latter made by MATLAB."""


def random_image(height: int, width: int, seed: int = 0) -> Tensor:
    """(3, H, W) on the 8-bit grid."""
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(256, (3, height, width), generator=gen).float() / 255


def grey_levels(x: Tensor) -> Tensor:
    return (x * 255).round().int()


# --- downscaling ---------------------------------------------------------------------------------------------------


def cubic(t: Array) -> Array:
    """Keys 1981, a = -0.5."""
    t = np.abs(t)
    inner, outer = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t <= 1, inner, np.where(t <= 2, outer, 0.0))


def imresize(image: Array, scale: int, boundary: Boundary, round8: bool) -> Array:
    """`imresize(image, 1/scale)` of (H, W) grey levels, by weights and indices as in MATLAB's contributions()."""
    for axis in (0, 1):
        length = image.shape[axis]
        centres = scale * np.arange(1, length // scale + 1) - (scale - 1) / 2  # 1-based
        indices = np.floor(centres - 2 * scale)[:, None].astype(int) + np.arange(4 * scale + 2)
        weights = cubic((centres[:, None] - indices) / scale) / scale
        weights /= weights.sum(axis=1, keepdims=True)
        if boundary == "edge":
            indices = np.clip(indices, 1, length) - 1
        else:
            mirror = np.concatenate([np.arange(length), np.arange(length)[::-1]])
            indices = mirror[(indices - 1) % (2 * length)]
        image = np.moveaxis((np.moveaxis(image, axis, -1)[..., indices] * weights).sum(-1), -1, axis)
        if round8:
            image = np.clip(np.floor(image + 0.5), 0, 255)
    return image


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(32, 32), (36, 20), (33, 47), (8, 60), (115, 131)])
@pytest.mark.parametrize("boundary", ["edge", "symmetric"])
@pytest.mark.parametrize("round8", [True, False])
def test_downscaling_is_matlabs_algorithm(
    scale: Scale, size: tuple[int, int], boundary: Boundary, round8: bool
) -> None:
    hr = random_image(*size)
    h, w = (side // scale * scale for side in size)
    whole = (hr[:, :h, :w].double() * 255).numpy()
    expected = np.stack([imresize(channel, scale, boundary, round8) for channel in whole])
    lr = bicubic_downscale(hr, scale, boundary=boundary, round8=round8).double().numpy() * 255
    np.testing.assert_allclose(lr, expected, atol=1e-4 if round8 else 1e-3)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_half_is_rounded_up(scale: Scale) -> None:
    """Rows that alternate between two grey levels, of a mean of exactly a half, whatever the levels are."""
    for level in range(0, 255, 5):
        hr = torch.full((3, 6 * scale, 4 * scale), level / 255)
        hr[:, 1::2] = (level + 1) / 255
        made = grey_levels(bicubic_downscale(hr, scale))[:, 2:-2]
        assert torch.equal(made, torch.full_like(made, level + 1)), level


def test_boundary_and_rounding_make_a_difference() -> None:
    hr = random_image(32, 32)
    plain = bicubic_downscale(hr)
    assert not torch.equal(plain, bicubic_downscale(hr, boundary="symmetric"))
    assert not torch.equal(plain, bicubic_downscale(hr, round8=False))


@pytest.mark.skipif(not MATLAB.is_dir(), reason="needs set5 and set14 with MATLAB's LR: set BENCHSR_TEST_DATA")
@pytest.mark.parametrize("folder", ["set5", "set14"])
def test_downscaling_reproduces_matlabs_images(folder: str) -> None:
    files = sorted((MATLAB / folder).glob("*_HR.png"))
    assert files
    for file in files:
        made = bicubic_downscale(read_image(file))
        matlab = read_image(file.with_name(file.name.replace("_HR", "_LR")))
        assert torch.equal(grey_levels(made), grey_levels(matlab)), file.name


def test_a_batch_is_downscaled_image_by_image() -> None:
    batch = torch.stack([random_image(20, 24, seed) for seed in range(3)])
    assert torch.equal(bicubic_downscale(batch), torch.stack([bicubic_downscale(image) for image in batch]))


@pytest.mark.parametrize("hr", [torch.zeros(3, 3, 8), torch.zeros(8, 8), torch.zeros((3, 8, 8), dtype=torch.uint8)])
def test_downscaling_refuses_what_is_no_image(hr: Tensor) -> None:
    with pytest.raises(InputError, match="bicubic_downscale needs"):
        bicubic_downscale(hr)


# --- images --------------------------------------------------------------------------------------------------------


def saved(path: Path, mode: str, value: Any, **options: Any) -> Path:
    Image.new(mode, (12, 10), value).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("mode", "name", "value", "expected"),
    [
        ("1", "a.png", 1, (1, 1, 1)),
        ("L", "a.png", 51, (0.2, 0.2, 0.2)),
        ("RGB", "a.png", (255, 51, 0), (1, 0.2, 0)),
        ("RGB", "a.bmp", (255, 51, 0), (1, 0.2, 0)),
        ("P", "a.png", 0, (0, 0, 0)),
        ("CMYK", "a.tif", (0, 255, 255, 0), (1, 0, 0)),
        ("YCbCr", "a.tif", (255, 128, 128), (1, 1, 1)),
        ("LA", "a.png", (0, 0), (1, 1, 1)),
        ("RGBA", "a.png", (255, 0, 0, 51), (1, 0.8, 0.8)),
        ("I;16", "a.png", 12345, (12345 / 65535,) * 3),
        ("I", "a.tif", 12345, (12345 / 65535,) * 3),
        ("F", "a.tif", 0.123, (0.123,) * 3),
    ],
)
def test_images_of_any_mode_become_rgb(
    tmp_path: Path, mode: str, name: str, value: Any, expected: tuple[float, ...]
) -> None:
    image = read_image(saved(tmp_path / name, mode, value))
    assert image.shape == (3, 10, 12)
    assert image.dtype == torch.float32
    torch.testing.assert_close(
        image, torch.tensor(expected, dtype=torch.float32).view(3, 1, 1).expand(3, 10, 12), atol=1e-6, rtol=0
    )


def test_colour_of_16_bit_is_read_with_8(tmp_path: Path) -> None:
    """A PNG written by hand, as Pillow writes none: one filter byte a row, then big-endian samples."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    values = np.random.default_rng(0).integers(0, 65536, (10, 12, 3))
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = (12).to_bytes(4, "big") + (10).to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    expected = torch.from_numpy(values / 65535).permute(2, 0, 1).float()
    torch.testing.assert_close(read_image(tmp_path / "a.png"), expected, atol=1 / 255, rtol=0)


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (12, 10), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "opaque.png")[:, 0, 0].tolist() == [1, 0, 0]
    assert read_image(tmp_path / "clear.png")[:, 0, 0].tolist() == [1, 1, 1]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (12, 10))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    turned = read_image(tmp_path / "turned.png")
    assert turned.shape == (3, 12, 10)
    assert turned[0].nonzero().tolist() == [[0, 9]]


def test_images_are_written_and_read_again(tmp_path: Path) -> None:
    image = random_image(9, 13)
    write_image(tmp_path / "made" / "a.png", image)
    assert torch.equal(read_image(tmp_path / "made" / "a.png"), image)
    write_image(tmp_path / "a.png", image * 3 - 1)
    assert torch.equal(read_image(tmp_path / "a.png"), grey_levels((image * 3 - 1).clamp(0, 1)) / 255)


def test_webp_is_lossless_unless_a_quality_is_asked_for(tmp_path: Path) -> None:
    image = random_image(40, 48)
    write_image(tmp_path / "whole.webp", image)
    assert torch.equal(read_image(tmp_path / "whole.webp"), image)
    sizes = []
    for quality in (90, 30):
        write_image(tmp_path / "lossy.webp", image, quality)
        assert not torch.equal(read_image(tmp_path / "lossy.webp"), image)
        sizes.append((tmp_path / "lossy.webp").stat().st_size)
    assert (tmp_path / "whole.webp").stat().st_size > sizes[0] > sizes[1]


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, format="PNG")
    header = bytearray(buffer.getvalue())
    header[16:24] = (60000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    return bytes(header)


def cut_short() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, format="PNG")
    return buffer.getvalue()[:1000]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an image"),
        (b"no image at all", "cannot be read as an image"),
        (cut_short(), "cannot be read as an image"),
        (bomb(), "60000|decompression bomb"),
        (None, "no such file"),
    ],
    ids=["empty", "text", "cut short", "bomb", "absent"],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "broken.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_image(path)
    assert str(path) in str(raised.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_large_images_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchsr.data.images.MAX_PIXELS", 119)
    with pytest.raises(InputError, match="12 x 10 pixels are more than 119"):
        read_image(saved(tmp_path / "a.png", "RGB", 0))


@pytest.mark.parametrize(
    ("mode", "value", "message"),
    [("F", 1.5, "beyond 1"), ("F", float("nan"), "beyond 1"), ("I", 70000, "beyond 65535"), ("I", -1, "beyond 65535")],
)
def test_grey_of_unknown_scale_is_refused(tmp_path: Path, mode: str, value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_image(saved(tmp_path / "a.tif", mode, value))


def test_too_small_an_image_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", "RGB", 0)
    with pytest.raises(InputError, match=r"a\.png: 12 x 10 pixels; each side needs at least 11"):
        read_image(path, min_side=11)
    assert read_image(path, min_side=10).shape == (3, 10, 12)


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("a.jpg", random_image(8, 8), r"ends in \.png"),
        ("a.png", random_image(8, 8)[None], r"\(1, 3, 8, 8\)"),
        ("a.png", random_image(8, 8)[:1], r"\(1, 8, 8\)"),
        ("a.png", grey_levels(random_image(8, 8)), "int32"),
        ("a.png", random_image(8, 8) * float("nan"), "NaN"),
        ("file/a.png", random_image(8, 8), "file"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, image: Tensor, message: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=message):
        write_image(tmp_path / name, image)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- folders -------------------------------------------------------------------------------------------------------


def put(path: Path, height: int = 40, width: int = 48, seed: int = 0) -> Tensor:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = random_image(height, width, seed)
    pixels = grey_levels(image).permute(1, 2, 0).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return image


def put_pair(hr: Path, lr: Path, height: int = 40, width: int = 48, seed: int = 0) -> None:
    """LR that holds every fourth pixel of HR, so that crops of both can be compared."""
    image = put(hr, height, width, seed)
    lr.parent.mkdir(parents=True, exist_ok=True)
    write_image(lr, image[:, : height // 4 * 4 : 4, : width // 4 * 4 : 4])


def test_a_folder_of_hr_images(tmp_path: Path) -> None:
    images = {name: put(tmp_path / f"{name}.png", 41, 50, seed) for seed, name in enumerate(["b", "a_HR", "c"])}
    put(tmp_path / "below" / "d.png")
    (tmp_path / "notes.txt").write_text("no image")
    dataset = load_dataset(tmp_path)
    assert dataset.id == f"folder:{tmp_path.name}"
    assert dataset.ids == ["a_HR", "b", "c"]
    assert len(dataset) == 3
    for sample in (dataset[i] for i in range(3)):
        assert torch.equal(sample.hr, images[sample.id][:, :40, :48])
        assert torch.equal(sample.lr, bicubic_downscale(images[sample.id]))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("HR/{}.png", "LR/{}.png"),
        ("HR/{}.png", "LR/{}x4.png"),
        ("HR/{}_HR.png", "LR/inner/{}_LR_x4.png"),
        ("HR/{}_gt.jpg", "LR/{}_lr.png"),
        ("{}_SRF_4_HR.png", "{}_SRF_4_LR.png"),
    ],
)
@pytest.mark.parametrize("crop", [None, 9])
def test_pairs_are_matched_by_name(tmp_path: Path, hr: str, lr: str, crop: int | None) -> None:
    for seed, name in enumerate(["0801", "0802"]):
        put_pair(tmp_path / hr.format(name), tmp_path / lr.format(name), 43, 50, seed)
    dataset = load_dataset(tmp_path, crop=crop)
    assert [sample_id.removesuffix("_SRF_4") for sample_id in dataset.ids] == ["0801", "0802"]
    for index in range(2):
        sample = dataset[index]
        assert sample.lr.shape == ((3, 10, 12) if crop is None else (3, 9, 9))
        if "jpg" not in hr:
            assert torch.equal(sample.lr, sample.hr[:, ::4, ::4])


def test_the_first_samples_are_the_same_samples(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        put(tmp_path / f"{name}.png", seed=seed)
    whole = load_dataset(tmp_path, crop=8)
    assert whole.first(2).ids == ["a", "b"]
    assert whole.first(2).sample_key("b") == whole.sample_key("b")
    assert whole.first(None).fingerprint() == whole.first(9).fingerprint() == whole.fingerprint()


def test_hr_alone_in_its_folder(tmp_path: Path) -> None:
    put(tmp_path / "HR" / "a.png")
    sample = load_dataset(tmp_path)[0]
    assert torch.equal(sample.lr, bicubic_downscale(sample.hr))


def test_the_crop_lies_at_the_centre_and_lr_is_made_of_it(tmp_path: Path) -> None:
    image = put(tmp_path / "a.png", 64, 86)
    for sample in (load_dataset(tmp_path, crop=8)[0], load_sample(tmp_path / "a.png", crop=8)):
        assert torch.equal(sample.hr, image[:, 16:48, 24:56])
        assert torch.equal(sample.lr, bicubic_downscale(sample.hr))


@pytest.mark.parametrize("scale", SCALES)
def test_a_data_set_at_any_scale(tmp_path: Path, scale: Scale) -> None:
    image = put(tmp_path / "a.png", 20 * scale + 1, 19 * scale + 1)
    crop = max(8, -(-32 // scale))
    for dataset, (h, w) in (
        (load_dataset(tmp_path, scale=scale), (20, 19)),
        (load_dataset(tmp_path, scale=scale, crop=crop), (crop, crop)),
    ):
        sample = dataset[0]
        assert sample.scale == scale
        assert sample.lr.shape == (3, h, w)
        assert sample.hr.shape == (3, scale * h, scale * w)
        top, left = scale * ((20 - h) // 2), scale * ((19 - w) // 2)
        assert torch.equal(sample.hr, image[:, top : top + scale * h, left : left + scale * w])
        assert torch.equal(sample.lr, bicubic_downscale(sample.hr, scale))
        cut = dataset.crop
        assert torch.equal(sample.lr, load_sample(tmp_path / "a.png", crop=cut, scale=scale).lr)
    with pytest.raises(InputError, match=rf"at least {crop} pixels a side, and {scale} times as many in HR"):
        load_dataset(tmp_path, scale=scale, crop=crop - 1)


def test_lr_that_comes_with_the_data_is_of_the_scale_of_the_run(tmp_path: Path) -> None:
    image = random_image(64, 72)
    write_image(tmp_path / "HR" / "a.png", image)
    write_image(tmp_path / "LR" / "ax2.png", image[:, ::2, ::2])
    sample = load_dataset(tmp_path, scale=2)[0]
    assert (sample.id, sample.scale) == ("a", 2)
    assert torch.equal(sample.lr, image[:, ::2, ::2])
    with pytest.raises(InputError, match=r"ax2\.png \(36 x 32 pixels\).*HR must be 4 times LR"):
        load_dataset(tmp_path)


def arrange(folder: Path, case: str) -> None:
    """Folders that cannot be used, each for one reason."""
    put_pair(folder / "HR" / "a.png", folder / "LR" / "a.png")
    if case == "LR missing":
        put(folder / "HR" / "b.png")
    elif case == "HR missing":
        put(folder / "LR" / "b.png", 10, 12)
    elif case == "other size":
        put_pair(folder / "HR" / "b.png", folder / "LR" / "b.png")
        put(folder / "LR" / "b.png", 10, 13)
    elif case == "turned":
        put_pair(folder / "HR" / "b.png", folder / "LR" / "b.png")
        put(folder / "LR" / "b.png", 12, 10)
    elif case == "equal names":
        put(folder / "HR" / "a.bmp")
    elif case == "too small":
        put_pair(folder / "HR" / "b.png", folder / "LR" / "b.png", 28, 40)
    elif case == "damaged":
        (folder / "HR" / "a.png").write_bytes(b"damaged")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("LR missing", r"without a partner.*HR.b\.png"),
        ("HR missing", r"without a partner.*LR.b\.png"),
        ("other size", r"LR.b\.png \(13 x 10 pixels\) and .*HR.b\.png \(48 x 40\) do not match"),
        ("turned", r"LR.b\.png \(10 x 12 pixels\) and .*HR.b\.png \(48 x 40\) do not match"),
        ("equal names", r"a\.png and .*a\.bmp would both be image 'a'"),
        ("too small", r"b\.png"),
        ("damaged", r"HR.a\.png: cannot be read"),
    ],
)
def test_folders_that_cannot_be_used_name_the_file(tmp_path: Path, case: str, message: str) -> None:
    arrange(tmp_path, case)
    with pytest.raises(InputError, match=message):
        _ = [load_dataset(tmp_path)[i] for i in range(2)]


@pytest.mark.parametrize("crop", [11, 7, 0, -8])
def test_a_crop_that_does_not_fit_is_refused(tmp_path: Path, crop: int) -> None:
    put(tmp_path / "a.png", 40, 80)
    with pytest.raises(InputError, match=rf"a\.png \(80 x 40 pixels\) holds no LR crop of {crop} x {crop}"):
        load_dataset(tmp_path, crop=crop)


def test_folders_and_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no HR images"):
        load_dataset(tmp_path)
    with pytest.raises(UnknownIdError, match=r"did you mean 'photos'.*nor is it a folder"):
        load_dataset("fotos")


# --- keys ----------------------------------------------------------------------------------------------------------


def test_keys_change_with_whatever_can_change_a_pixel(tmp_path: Path) -> None:
    put_pair(tmp_path / "HR" / "a.png", tmp_path / "LR" / "a.png")
    put(tmp_path / "plain" / "a.png")

    def state() -> tuple[str, str]:
        dataset = load_dataset(tmp_path)
        return dataset.sample_key("a"), dataset.fingerprint()

    before = state()
    assert state() == before
    seen = {before}
    for folder in ("HR", "LR"):
        file = tmp_path / folder / "a.png"
        image = read_image(file)
        image[0, 0, 0] = 1 - image[0, 0, 0]
        write_image(file, image)
        os.utime(file, ns=(0, len(seen)))
        seen.add(state())
    assert len(seen) == 3
    plain = load_dataset(tmp_path / "plain")
    variants = [plain, replace(plain, crop=8), *(replace(plain, scale=scale) for scale in SCALES if scale != 4)]
    for made in (Made(boundary="symmetric"), Made(round8=False)):
        variants.append(replace(plain, sources=Registry("image", {"a": replace(plain.sources["a"], made=made)})))
    assert len({variant.fingerprint() for variant in variants}) == len(variants)


def test_keys_of_x4_are_as_they_were_before_scale_was_a_choice(tmp_path: Path) -> None:
    """Results are found again by them: SHA-256 of the id, the file's hash, how LR was made, and the crop."""
    put(tmp_path / "a.png")
    told = ["a", hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest(), ["edge", True], 8]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()
    assert load_dataset(tmp_path, crop=8).sample_key("a") == key


def test_keys_of_pairs_are_told_by_their_files(tmp_path: Path) -> None:
    put_pair(tmp_path / "HR" / "a.png", tmp_path / "LR" / "a.png")
    pairs = load_dataset(tmp_path)
    assert replace(pairs, scale=2).sample_key("a") == pairs.sample_key("a")


def test_samples_of_equal_pixels_and_unlike_names_have_unlike_keys(tmp_path: Path) -> None:
    for name in ("a", "b"):
        put(tmp_path / f"{name}.png")
    dataset = load_dataset(tmp_path)
    assert dataset.sample_key("a") != dataset.sample_key("b")
    with pytest.raises(UnknownIdError, match="unknown image 'c'"):
        dataset.sample("c")


# --- named data sets -----------------------------------------------------------------------------------------------


def test_photos_are_real_and_here() -> None:
    photos = load_dataset("photos", crop=32)
    assert len(photos) == len(set(photos.ids)) == DATASETS["photos"].count >= 6
    for i in range(len(photos)):
        sample = photos[i]
        assert sample.hr.shape == (3, 128, 128)
        assert sample.lr.shape == (3, 32, 32)
        assert sample.hr.std() > 0.05
        assert not torch.equal(sample.hr[0], sample.hr[1]), "a photograph in colour"
        upscaled = torch.nn.functional.interpolate(sample.lr[None], scale_factor=4, mode="bicubic").clamp(0, 1)
        assert 18 < psnr(upscaled, sample.hr[None]).item() < 40


FETCHED = [card for card in DATASETS.values() if card.source.kind != "embedded"]
ZIPPED = [card for card in FETCHED if card.source.kind == "archives"]


@pytest.mark.parametrize("card", FETCHED, ids=lambda card: card.id)
def test_a_data_set_that_is_not_here_says_how_to_get_it(
    card: DataCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path))
    with pytest.raises(UnavailableError, match=f"`benchsr fetch {card.id}`") as raised:
        load_dataset(card.id)
    assert str(tmp_path) not in str(raised.value), "the reason goes into published tables"


@pytest.mark.parametrize("card", ZIPPED, ids=lambda card: card.id)
def test_a_copy_put_there_by_hand_is_taken_when_complete(
    card: DataCard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENCHSR_CACHE", str(tmp_path))
    two = card.model_copy(update={"count": 2})
    monkeypatch.setitem(DATASETS._entries, card.id, two)
    folder = tmp_path / "datasets" / card.id
    put_pair(folder / "HR" / "0801.png", folder / "LR" / "X4" / "0801x4m.png")
    with pytest.raises(InputError, match=r"holds 1 of the 2 images"):
        load_dataset(card.id)
    put_pair(folder / "HR" / "0900.png", folder / "LR" / "X4" / "0900x4m.png")
    dataset = load_dataset(card.id, crop=8)
    assert (dataset.id, dataset.ids) == (card.id, ["0801", "0900"])
    assert torch.equal(dataset[1].lr, dataset[1].hr[:, ::4, ::4])


@pytest.mark.parametrize("name", ["photos", "div2k-valid"])
def test_a_folder_never_passes_for_the_data_set_of_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    keys = set()
    for seed in (0, 1):
        write_image(tmp_path / name / "0801.png", random_image(40, 48, seed))
        dataset = load_dataset(tmp_path / name)
        assert dataset.id == f"folder:{name}"
        assert dataset.id not in DATASETS
        keys.add(dataset.sample_key("0801"))
    assert len(keys) == 2  # what a folder holds is in its samples' keys
