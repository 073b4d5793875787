"""The FSNS data set: shards of tf.Examples to decoded and checked samples.

Legend: B batch, H W image (W holds all views side by side), T label length.
"""

from __future__ import annotations

import contextlib
import difflib
import glob
import io
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from google.protobuf.message import DecodeError
from PIL import Image, UnidentifiedImageError
from tfrecord.example_pb2 import BytesList, Example, Feature, Features, Int64List
from torch.utils.data import Dataset

try:
    from kornia_rs.io import decode_image_png_u8 as decode_png
except ImportError:
    decode_png = None

from aocr_torch.data.charset import Charset, CharsetError
from aocr_torch.data.decoded_cache import DecodedCache
from aocr_torch.data.records import INDEX_SUFFIX, RecordError, Shards

NOT_SHARDS = (INDEX_SUFFIX, ".tfindex", ".idx")  # our indexes, and those that users of tfrecord2idx may have made
RGB_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
IMAGE_FORMATS = ("PNG", "JPEG")
PNG_HEAD = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR"
RGB_TAIL = bytes([8, 2, 0, 0, 0])  # of the header: eight bits, RGB, not interlaced


def find_shards(dataset_dir: Union[str, Path], split_name: str) -> list[Path]:
    """The shards of a split, sorted: `<dataset_dir>/train/train*` for "train", and so on.

    `split_name` may also be a file or a pattern, absolute or relative to `dataset_dir` or to the working directory.

    Raises:
        FileNotFoundError: no such folder, or nothing matches; the message lists what there is.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir {folder} is not a folder: expected one that holds train/, test/, ...")
    inside, bare = glob.escape(str(folder)), glob.escape(split_name)
    # A file before any pattern of its name, which may hold a character that means something in one.
    patterns = [f"{inside}/{bare}", f"{inside}/{split_name}/{split_name}*", f"{inside}/{split_name}", bare, split_name]
    for pattern in patterns:
        found = (Path(name) for name in glob.glob(pattern, recursive=True) if not name.endswith(NOT_SHARDS))
        shards = sorted({path for path in found if path.is_file()})  # `**/**` finds one several times
        if shards:
            return shards
    splits = sorted(path.name for path in folder.iterdir() if path.is_dir())
    nearest = difflib.get_close_matches(split_name, splits, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest and nearest[0] != split_name else ""
    raise FileNotFoundError(
        f"split {split_name!r} has no shards: nothing matches {patterns[1]} or {patterns[2]}; "
        f"{hint}folders in {folder}: {', '.join(splits) or 'none'}"
    )


def find_charset(dataset_dir: Union[str, Path], charset_filename: Optional[str] = None) -> Path:
    """The data set's charset file: `charset_filename` (absolute or inside it), or its only `charset_size=*.txt`.

    Raises:
        FileNotFoundError: there is none, or more than one to choose from.
    """
    folder = Path(dataset_dir)
    if charset_filename is not None:
        if not (folder / charset_filename).is_file():
            raise FileNotFoundError(f"the charset file {folder / charset_filename} does not exist")
        return folder / charset_filename
    found = sorted(folder.glob("charset_size=*.txt"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise FileNotFoundError(
            f"expected one charset_size=*.txt in {folder}, found {names}: name it (charset_filename)"
        )
    return found[0]


def encode_example(
    png: bytes, text: str, charset: Charset, *, length: int, width: int, height: int, orig_width: int
) -> bytes:
    """A serialized tf.Example with all features of FSNS.

    Args:
        png: the encoded image, all views side by side.
        text: what is to be read, at most `length` characters of the charset.
        width: of the whole image, in pixels.
        orig_width: of the part that holds real views; the rest is noise.

    Raises:
        CharsetError: the charset cannot encode the text.
    """

    def of_bytes(value: bytes) -> Feature:
        return Feature(bytes_list=BytesList(value=[value]))

    def of_ints(*values: int) -> Feature:
        return Feature(int64_list=Int64List(value=values))

    features = {
        "image/encoded": of_bytes(png),
        "image/format": of_bytes(b"PNG"),
        "image/width": of_ints(width),
        "image/orig_width": of_ints(orig_width),
        "image/height": of_ints(height),
        "image/class": of_ints(*charset.encode(text, length)),
        "image/unpadded_class": of_ints(*charset.encode(text, length)[: len(text)]),
        "image/text": of_bytes(text.encode("utf-8")),
    }
    return Example(features=Features(feature=features)).SerializeToString(deterministic=True)


def decode_image(encoded: bytes, height: int, width: int) -> np.ndarray:
    """Decodes a PNG or JPEG of exactly this size to RGB, (H, W, 3) uint8.

    As TensorFlow's decoder does when asked for three channels, grey is repeated, a palette looked up and an
    alpha channel dropped (not blended). Refused: 16-bit grey, CMYK, and every other format.

    A PNG in 8-bit RGB, as FSNS has them, goes to kornia-rs where that is installed, which takes a third of the time;
    what it refuses, and everything else, goes to Pillow, which forgives some damage; pixels that are not there are none
    of it. kornia-rs leaves zlib's own checksum unchecked.

    Raises:
        ValueError: it does not decode, has another size or a mode that is refused; the message is a reason.
    """
    if encoded.startswith(PNG_HEAD + struct.pack(">II", width, height) + RGB_TAIL) and decode_png is not None:
        with contextlib.suppress(Exception):  # Pillow says what is wrong
            return decode_png(encoded, (height, width), "rgb")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its size, which is checked before a pixel is decoded
            image = Image.open(io.BytesIO(encoded), formats=IMAGE_FORMATS)
        size, mode = image.size, image.mode
        if size == (width, height) and mode in RGB_MODES:
            if image.format == "PNG":
                _require_all_rows(encoded)
            if "transparency" in image.info:
                del image.info["transparency"]  # dropped like an alpha channel; Pillow would warn
            return np.array(image.convert("RGB"))
    except UnidentifiedImageError:
        raise ValueError(f"the image does not decode: expected a {' or '.join(IMAGE_FORMATS)}") from None
    except Exception as error:  # damaged files make Pillow raise a dozen unrelated types
        raise ValueError(f"the image does not decode: {error}; expected a {' or '.join(IMAGE_FORMATS)}") from None
    if size != (width, height):
        raise ValueError(
            f"the image is {size[0]}x{size[1]}, expected {width}x{height}: set --image_width and --image_height"
        )
    raise ValueError(f"the image's mode is {mode}, expected one of {', '.join(RGB_MODES)}: convert it to 8-bit RGB")


def written_text(features: Any) -> Optional[str]:
    """image/text of a record, or None where it has none."""
    values = features["image/text"].bytes_list.value if "image/text" in features else []
    return values[0].decode("utf-8", errors="replace") if len(values) == 1 else None


def text_of(features: Any, label: list[int], charset: Charset) -> str:
    """The label's text: image/text where it says the same as the ids, which several characters may share."""
    written = written_text(features)
    try:
        return written if charset.encode(written or "", len(label)) == label else charset.decode(label)
    except CharsetError:
        return charset.decode(label)


def compressed_pixels(png: bytes) -> bytes:
    """The zlib stream of a PNG; nothing of any other image."""
    place, parts = 8, []  # of the first chunk: its length in four bytes, then its name
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4].rjust(4, b"\0"))
        if png[place + 4 : place + 8] == b"IDAT":
            parts.append(png[place + 8 : place + 8 + length])
        place += length + 12
    return b"".join(parts)


def _require_all_rows(png: bytes) -> None:
    """Raises ValueError where the pixels of a PNG end early; Pillow would leave the rest black."""
    width, height, depth, color, _, _, interlace = struct.unpack(">IIBBBBB", png[16:29])
    needed = height * (1 + (width * depth * {2: 3, 4: 2, 6: 4}.get(color, 1) + 7) // 8)
    found = len(zlib.decompressobj().decompress(compressed_pixels(png)))
    if not interlace and found < needed:
        raise ValueError(f"its pixels end early, after {found} of {needed} bytes")


class FSNSDataset(Dataset):
    """The records of shards as samples, decoded and checked, not augmented.

    A sample is {'image': uint8 (H, W, 3), 'label': int64 (T,), 'index': int, 'position': int}. What is wrong with a
    record raises RecordError, or with `skip_bad_records` gives {'skipped': message}.
    `num_records` leaves only the first so many.
    """

    def __init__(
        self,
        shards: Shards,
        charset: Charset,
        *,
        image_height: int = 150,
        image_width: int = 600,
        max_sequence_length: int = 37,
        skip_bad_records: bool = False,
        num_records: Optional[int] = None,
    ) -> None:
        self.shards = shards
        self.charset = charset
        self.image_height = image_height
        self.image_width = image_width
        self.max_sequence_length = max_sequence_length
        self.skip_bad_records = skip_bad_records
        self.num_records = len(shards) if num_records is None else min(num_records, len(shards))
        self.cache: Optional[DecodedCache] = None  # set it to keep what was decoded

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, key: Union[int, tuple[int, int]]) -> dict[str, Any]:
        """The sample of an index, or of a (position, index): see TrainBatchSampler for the position."""
        batch = self.batch([key])
        if batch["skipped"]:
            return {"skipped": batch["skipped"][0]}
        numbers = {name: batch[name].item() for name in ("index", "position")}
        return {"image": batch["image"][0], "label": batch["label"][0], **numbers}

    def batch(
        self, keys: Sequence[Union[int, tuple[int, int]]], image: Optional[torch.Tensor] = None
    ) -> dict[str, Any]:
        """The samples of these keys side by side, each decoded into its place in `image`, if that is given.

        Returns:
            'image' uint8 (B, H, W, 3), 'label' int64 (B, T), 'index' and 'position' int64 (B,), and 'skipped', the
            messages of the bad records, which are left out of B.

        Raises:
            RecordError: a record is bad, unless bad ones are skipped.
        """
        if image is None:
            image = torch.empty((len(keys), self.image_height, self.image_width, 3), dtype=torch.uint8)
        label = torch.empty((len(keys), self.max_sequence_length), dtype=torch.int64)
        pictures, labels = image.numpy(), label.numpy()
        good, skipped = [], []
        places = [key if isinstance(key, tuple) else (key, key) for key in keys]
        if self.cache is None:
            self.shards.read_ahead(index for _, index in places)
        for position, index in places:
            try:
                self._fill(index, pictures[len(good)], labels[len(good)])
                good.append((index, position))
            except RecordError as error:
                if not self.skip_bad_records:
                    raise
                skipped.append(str(error))
        numbers = torch.tensor(good, dtype=torch.int64).view(-1, 2)
        parts = {"image": image[: len(good)], "label": label[: len(good)]}
        return {**parts, "index": numbers[:, 0], "position": numbers[:, 1], "skipped": skipped}

    def _fill(self, index: int, picture: np.ndarray, label: np.ndarray) -> None:
        """Fills in a record's picture, uint8 (H, W, 3), and label, int64 (T,), from the cache or else the shards."""
        if self.cache is None:
            self._decode(index, picture, label)
        elif not self.cache.read(index, picture, label):
            self._decode(index, picture, label)
            self.cache.write(index, picture, label)

    def _decode(self, index: int, picture: np.ndarray, label: np.ndarray) -> None:
        features = self._features(index)
        label[:] = self._label(features, index)
        try:
            picture[:] = decode_image(self._encoded(features, index), self.image_height, self.image_width)
        except ValueError as error:
            raise self.shards.error(index, str(error)) from None

    def name(self, index: int) -> str:
        """The record as messages name it: "train-00000:3"."""
        return self.shards.name(index)

    def text(self, index: int) -> str:
        """The record's label as the charset decodes it, so that it compares with decoded predictions."""
        return self.charset.decode(self._label(self._features(index), index))

    def charset_warning(self, most: int = 16) -> Optional[str]:
        """A line on the charset if the texts of most of the first records are not what it makes of their ids."""
        texts = []  # as image/text has it, as the charset has it
        for index in range(min(most, len(self))):
            try:
                features = self._features(index)
                label = self._label(features, index)
            except RecordError:
                continue
            if written := written_text(features):
                texts.append((written, text_of(features, label, self.charset)))
        wrong = [pair for pair in texts if pair[0] != pair[1]]
        if 2 * len(wrong) <= len(texts):
            return None
        return (
            f"warning: {len(wrong)} of the first {len(texts)} records have another text in image/text than the charset "
            f"makes of their ids, the first {wrong[0][0]!r} and {wrong[0][1]!r}: is it this data set's?"
        )

    def encoded_image(self, index: int) -> bytes:
        """The PNG or JPEG of a record; raises RecordError."""
        return self._encoded(self._features(index), index)

    def _encoded(self, features: Any, index: int) -> bytes:
        encoded = self._values(features, index, "image/encoded", "bytes_list")
        if len(encoded) != 1:
            raise self.shards.error(index, f"image/encoded has {len(encoded)} values, expected 1")
        return encoded[0]

    def _features(self, index: int) -> Any:
        try:
            return Example.FromString(self.shards.read(index)).features.feature
        except DecodeError as error:
            raise self.shards.error(index, f"the data is not a tf.Example: {error}") from None

    def _values(self, features: Any, index: int, name: str, kind: str) -> Any:
        if name not in features:
            raise self.shards.error(index, f"there is no feature {name}, only {', '.join(sorted(features)) or 'none'}")
        if features[name].WhichOneof("kind") != kind:
            found = features[name].WhichOneof("kind")
            raise self.shards.error(index, f"the feature {name} holds a {found}, expected: {kind}")
        return getattr(features[name], kind).value

    def _label(self, features: Any, index: int) -> list[int]:
        label, size = list(self._values(features, index, "image/class", "int64_list")), self.charset.size
        if len(label) != self.max_sequence_length:
            expected = f"expected {self.max_sequence_length}: set --max_sequence_length as the data set needs it"
            raise self.shards.error(index, f"the label image/class has {len(label)} ids, {expected}")
        unknown = next((identifier for identifier in label if not 0 <= identifier < size), None)
        if unknown is not None:
            expected = f"expected 0 to {size - 1}: is this the data set's charset file?"
            raise self.shards.error(index, f"the label image/class has the unknown id {unknown}, {expected}")
        return label
