"""Pictures as people have them, of any size and mode, to the views that a model reads.

H W height and width of the model's whole image, all views side by side.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional, Union

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

Picture = Union[str, os.PathLike, bytes, Image.Image, np.ndarray]

# Pillow knows more; some of those run other programs on the file, and nobody keeps photos in them.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif")
SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k")
MIN_SIDE = 4  # pixels; under that no letter can be told from another
LETTERBOX_GREY = 128  # what the network sees as 0


class PictureError(ValueError):
    """A picture that cannot be used.

    Attributes:
        reason: what was found and what was expected; the message has the picture's name before it, if it has one.
    """

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


def shown(path: Union[str, os.PathLike]) -> str:
    """A file's name as a line of output can hold it: escaped where it has line ends, tabs or broken UTF-8."""
    name = os.fspath(path)
    return name if name.isprintable() else ascii(name)


def read_picture(source: Picture) -> Image.Image:
    """Reads a picture as 8-bit RGB, turned upright as its EXIF says.

    Grey is repeated, 16 bits become 8, CMYK is converted, transparency shows white paper; of an animation or a file of
    several pages it is the first.

    Args:
        source: a path, the bytes of a file, a Pillow image, or an array (H, W) or (H, W, 1 to 4) of uint8, uint16,
            bool, or float in [0, 1].

    Raises:
        PictureError: with the reason alone; the caller knows what to call the picture.
    """
    with warnings.catch_warnings():
        # Pillow warns between one and two times its limit and refuses above: here all of it is refused, before
        # a pixel is decoded. Its other warnings are about pictures that it reads all the same.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = _opened(source)
            if min(image.size) < MIN_SIDE:
                found = "x".join(map(str, image.size))
                raise PictureError(f"is {found} pixels, expected at least {MIN_SIDE}x{MIN_SIDE}")
            if image.size[0] * image.size[1] > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise Image.DecompressionBombError
            with contextlib.suppress(Exception):  # damaged EXIF raises a dozen types; the pixels may be sound
                if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                    image = ImageOps.exif_transpose(image)
            return _to_rgb(image)
        except PictureError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels: scale it down first") from None
        except UnidentifiedImageError:
            raise PictureError(f"is not a picture that can be read: expected one of {', '.join(FORMATS)}") from None
        except Exception as error:  # damaged files make Pillow raise a dozen unrelated types
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            raise PictureError(f"cannot be read: {reason}") from None


def lay_out(
    picture: Image.Image, *, height: int, width: int, num_views: int, views: Optional[int] = None
) -> tuple[np.ndarray, int]:
    """Places a picture into the image that a model reads.

    A picture of exactly width x height is taken as it is. Any other is one view, or `views` views side by side; each is
    scaled to fit its place with its proportions kept, grey around it. Views that are missing are filled as FSNS fills
    them, with noise; it is drawn from the pixels, so the same picture always gives the same image.

    Args:
        picture: RGB. height, width: of the model's image. num_views: the model's.
        views: how many views the picture shows side by side; None for one, or all if the size is the model's.

    Returns:
        uint8 (H, W, 3), and the number of real views in it.

    Raises:
        PictureError: more views than the model has, or too many for the picture's width.
    """
    if views is None and picture.size == (width, height):
        return np.array(picture), num_views
    count = 1 if views is None else views
    if not 1 <= count <= num_views:
        raise PictureError(f"is said to show {count} views, expected 1 to {num_views}, as many as the model has")
    if count > 1 and picture.width // count < MIN_SIDE:
        raise PictureError(f"is {picture.width} pixels wide, too narrow to show {count} views")
    view_width = width // num_views
    edges = [picture.width * view // count for view in range(count + 1)]
    boxes = [(left, 0, right, picture.height) for left, right in zip(edges[:-1], edges[1:])]
    real = [_letterbox(picture.crop(box), height, view_width) for box in boxes]
    return np.concatenate(real + [_noise(real, number) for number in range(num_views - count)], 1), count


def _letterbox(view: Image.Image, height: int, width: int) -> np.ndarray:
    """The whole view, as large as it fits, in the middle: uint8 (height, width, 3)."""
    scale = min(width / view.width, height / view.height)
    size = max(1, round(view.width * scale)), max(1, round(view.height * scale))
    page = Image.new("RGB", (width, height), (LETTERBOX_GREY,) * 3)
    fitted = view if size == view.size else view.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    page.paste(fitted, ((width - size[0]) // 2, (height - size[1]) // 2))
    return np.array(page)


def _noise(real: list[np.ndarray], number: int) -> np.ndarray:
    """One view of uniform noise, (h, w, 3), a function of the real views and of its number among the missing."""
    content = hashlib.sha256(b"".join(view.tobytes() for view in real) + bytes([number % 256]))
    random = np.random.PCG64(int.from_bytes(content.digest()[:16], "little"))
    words = random.random_raw(-(-real[0].size // 8)).astype("<u8")
    return words.view(np.uint8)[: real[0].size].reshape(real[0].shape)


def _opened(source: Picture) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, bytes):
        path = Path(source)
        if not path.exists():
            raise PictureError("there is no such file")
        if path.is_dir():
            openable = os.access(path, os.R_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)
            raise PictureError("is a folder without pictures" if openable else "is a folder that cannot be opened")
        if not path.is_file():  # a pipe, which nobody may ever write to
            raise PictureError("is a device or a pipe, expected a file")
        if path.stat().st_size == 0:
            raise PictureError("is empty (0 bytes)")
        image = Image.open(path, formats=FORMATS)
    elif not source:
        raise PictureError("is empty (0 bytes)")
    else:
        image = Image.open(io.BytesIO(source), formats=FORMATS)
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    expected = "expected (H, W) or (H, W, 1 to 4) of uint8, uint16, bool, or float in [0, 1]"
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and 2 <= array.shape[2] <= 4)) or 0 in array.shape:
        raise PictureError(f"is an array of shape {array.shape}, {expected}")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _from_16_bit(array)
    elif array.dtype.kind == "f":
        if not (array.min() >= 0 and array.max() <= 1):  # also where one is NaN
            raise PictureError(f"is a float array with values in [{array.min()}, {array.max()}], {expected}")
        array = np.round(array * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise PictureError(f"is an array of {array.dtype}, {expected}")
    return Image.fromarray(np.ascontiguousarray(array))


def _from_16_bit(values: np.ndarray) -> np.ndarray:
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):  # older Pillow opens a 16-bit grey PNG as I
        values = np.clip(np.asarray(image), 0, 65535)
        if image.mode != "I" or image.format == "PNG" or values.max() > 255:
            values = _from_16_bit(values)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        values = values * 255 if values.max() <= 1 else values
        return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "RGBa"):
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


def visible_files(
    folder: Union[str, os.PathLike], on_error: Optional[Callable[[OSError], object]] = None
) -> Iterator[Path]:
    """Every file under `folder` that is not hidden, nor in a hidden folder; links to folders are followed, once each.

    on_error: of a folder that does not open.
    """
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith("."))


def find_pictures(folder: Union[str, os.PathLike]) -> list[Path]:
    """Every file under `folder` with a picture's suffix, sorted; hidden files and folders are left out.

    A folder that cannot be opened is in the list itself, so that it is not passed over in silence.
    """
    closed: list[Path] = []
    files = visible_files(folder, lambda error: closed.append(Path(error.filename)))
    found = [path for path in files if path.name.lower().endswith(SUFFIXES)]
    return sorted(found + closed)
