"""Images: read and written."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from benchsr.base.errors import InputError
from benchsr.base.files import require_ordinary, write_atomic
from benchsr.base.inference import to_bytes
from benchsr.base.pairs import Scale

MIN_SIDE, MIN_HR_SIDE = 8, 32
"""Shortest sides in pixels of an LR image, and of the HR image, of which LPIPS needs so much."""

MAX_PIXELS = 2**26
"""Largest image that is decoded (8192 x 8192 pixels): small files can claim to hold far more."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}
"""Files of a folder that are taken to be images."""


def min_side(scale: Scale) -> int:
    """Shortest side of an LR image, in pixels, whose HR image metrics can take too."""
    return max(MIN_SIDE, -(-MIN_HR_SIDE // scale))


def read_image(path: str | Path, *, min_side: int = MIN_SIDE) -> Tensor:
    """Read an image file as RGB (3, H, W) float32 in [0, 1].

    Any mode that Pillow reads: grey becomes three equal channels, palettes are looked up, transparency is laid over
    white, an EXIF orientation is applied, of several frames the first is taken, and colour profiles are ignored. Grey
    of 16 bit keeps its precision; Pillow reads colour of 16 bit with 8. Raises InputError, naming the file, where it
    cannot be decoded, has a side shorter than `min_side` or more than MAX_PIXELS pixels.
    """
    with opened(path, min_side) as image:
        array = _rgb(ImageOps.exif_transpose(image))
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()


@contextmanager
def opened(path: str | Path, min_side: int) -> Iterator[Image.Image]:
    """An image whose header has been read and whose size is within bounds; whatever goes wrong is an InputError."""
    require_ordinary(path)
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}; crop it")
            if min(image.size) < min_side:
                raise InputError(f"{path}: {image.width} x {image.height} pixels; each side needs at least {min_side}")
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except (OSError, EOFError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error}); give a whole PNG, JPEG or TIFF file") from None


def _rgb(image: Image.Image) -> NDArray[np.float32]:
    """(H, W, 3) in [0, 1]. Raises ValueError where the pixels' scale cannot be known."""
    if image.mode[0] in "IF":  # grey of more than 8 bit: integers up to 65535, or floats up to 1
        grey = np.asarray(image, dtype=np.float32) / np.float32(1 if image.mode == "F" else 65535)
        if not (grey.min() >= 0 and grey.max() <= 1):
            raise ValueError(f"values of mode {image.mode} beyond {'1' if image.mode == 'F' else '65535'}")
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)


def write_image(path: str | Path, image: Tensor, quality: int | None = None) -> None:
    """Write `image` (3, H, W), float in [0, 1] (values beyond are clamped), with 8 bits, whole or not at all.

    The name ends in .png or .webp, which is lossy where a `quality` from 0 to 100 is given. Raises InputError for
    another shape or dtype, for NaN, for another name and for a folder that cannot be written to.
    """
    if image.dim() != 3 or len(image) != 3 or not image.is_floating_point() or bool(image.isnan().any()):
        raise InputError(f"{path}: an image is float (3, H, W) without NaN; got {image.dtype} {tuple(image.shape)}")
    kind = Path(path).suffix.lower()
    how: dict[str, dict[str, object]] = {
        ".png": {"format": "PNG"},
        ".webp": {"format": "WebP", "lossless": quality is None, "quality": 100 if quality is None else quality},
    }
    if kind not in how:
        raise InputError(f"{path}: images are written as PNG or WebP; give a name that ends in .png or .webp")
    pixels = to_bytes(image.detach()).permute(1, 2, 0).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **how[kind])  # type: ignore[arg-type]
    write_atomic(Path(path), buffer.getvalue())
