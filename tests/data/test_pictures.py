"""Pictures of every kind as RGB, laid out into views; bad ones with a reason."""

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from aocr_torch.data.listing import read_listing
from aocr_torch.data.pictures import PictureError, find_pictures, lay_out, read_picture, shown

MODEL = {"height": 20, "width": 120, "num_views": 4}


def pixels(source) -> np.ndarray:
    return np.asarray(read_picture(source))


def file_bytes(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (12, 9, 3)).astype(np.uint8)


def test_the_same_picture_in_every_form(rgb, tmp_path):
    path = tmp_path / "photo.png"
    image = Image.fromarray(rgb)
    path.write_bytes(file_bytes(image))
    for source in (path, str(path), path.read_bytes(), image, rgb, rgb / 255):
        assert np.array_equal(pixels(source), rgb)


def test_grey_of_every_depth_is_the_same(rgb):
    grey = rgb[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, 2)
    deep = grey.astype(np.uint16) * 257
    sixteen = Image.fromarray(deep)
    opened_by_old_pillow = Image.fromarray(deep.astype(np.int32))
    assert (sixteen.mode, opened_by_old_pillow.mode) == ("I;16", "I")
    for source in (grey, grey[:, :, None], Image.fromarray(grey), deep, sixteen, file_bytes(sixteen), grey / 255):
        assert np.array_equal(pixels(source), expected)
    assert np.array_equal(pixels(opened_by_old_pillow), expected)
    assert np.array_equal(pixels(Image.fromarray(grey.astype(np.float32))), expected)
    wide = io.BytesIO()
    Image.fromarray(grey.astype(np.int32)).save(wide, "TIFF")  # bytes in a form that holds more
    assert np.array_equal(pixels(wide.getvalue()), expected)
    assert np.array_equal(pixels(grey > 99), np.repeat((grey > 99)[:, :, None], 3, 2) * np.uint8(255))


def test_palette_and_transparency(rgb):
    palette = Image.fromarray(rgb).quantize(256)
    assert np.array_equal(pixels(palette), np.asarray(palette.convert("RGB")))
    glass = np.dstack([rgb, np.full(rgb.shape[:2], 0, np.uint8)])
    glass[:6, :, 3] = 255
    for source in (glass, file_bytes(Image.fromarray(glass))):
        assert np.array_equal(pixels(source)[:6], rgb[:6])
        assert (pixels(source)[6:] == 255).all()
    hole = file_bytes(Image.fromarray(rgb[:, :, 0]), transparency=int(rgb[0, 0, 0]))
    assert (pixels(hole)[0, 0] == 255).all()
    assert (pixels(np.dstack([rgb[:, :, 0], np.full(rgb.shape[:2], 255, np.uint8)]))[:, :, 1] == rgb[:, :, 0]).all()


def test_cmyk_is_converted():
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    for source in (red, file_bytes(red, "JPEG")):
        assert np.abs(pixels(source).astype(int) - [255, 0, 0]).max() < 8


def test_a_mode_that_pillow_cannot_convert_has_one_line():
    with pytest.raises(PictureError, match="cannot be read: conversion from La to"):
        read_picture(Image.new("LA", (8, 8)).convert("La"))


def test_exif_turns_the_picture_upright(rgb):
    image = Image.fromarray(rgb)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must be turned by 90 degrees clockwise
    assert np.array_equal(pixels(file_bytes(image, exif=exif)), np.rot90(rgb, -1))


def test_damaged_exif_costs_nothing_but_the_rotation(rgb):
    data = file_bytes(Image.fromarray(rgb), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(pixels(data), rgb)


def test_first_of_several_pages(rgb):
    pages = file_bytes(Image.fromarray(rgb), "TIFF", save_all=True, append_images=[Image.new("RGB", (5, 5))])
    assert np.array_equal(pixels(pages), rgb)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"Dear Sir or Madam", "is not a picture that can be read: expected one of PNG"),
        (file_bytes(Image.new("RGB", (64, 64), "red"))[:90], "cannot be read: "),
        (file_bytes(Image.new("RGB", (1, 1))), "is 1x1 pixels, expected at least 4x4"),
        (tiny.bomb(), "has more than 89,478,485 pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
    ],
)
def test_bad_files_have_one_line(content, reason, tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    for source in (path, content):
        with pytest.raises(PictureError) as caught:
            read_picture(source)
        assert reason in caught.value.reason
        assert "\n" not in str(caught.value)


def test_an_array_has_the_same_limit():
    with pytest.raises(PictureError, match="has more than 89,478,485 pixels"):
        read_picture(np.broadcast_to(np.uint8(0), (9_500, 9_500)))


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match="no such file"):
        read_picture(tmp_path / "absent.png")
    for name, reason in ((".", "is a folder without pictures"), ("pipe.png", "is a device or a pipe")):
        with pytest.raises(PictureError, match=reason):
            read_picture(tmp_path / name)


@pytest.fixture
def unprivileged_folder():
    """A folder of this process, which is not the superuser while the test runs."""
    is_superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        if is_superuser:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            for path in Path(name).iterdir():
                path.chmod(0o700)
            if is_superuser:
                os.seteuid(0)


def test_what_may_not_be_opened_is_not_passed_over(unprivileged_folder):
    (unprivileged_folder / "b").mkdir(mode=0o000)
    (unprivileged_folder / "a.png").write_bytes(file_bytes(Image.new("RGB", (8, 8))))
    (unprivileged_folder / "a.txt").write_text("a")
    (unprivileged_folder / "a.png").chmod(0o000)
    found = find_pictures(unprivileged_folder)
    assert [path.name for path in found] == ["a.png", "b"]
    for path, reason in zip(found, ("cannot be read: Permission denied", "is a folder that cannot be opened")):
        with pytest.raises(PictureError, match=reason):
            read_picture(path)
    assert read_listing(unprivileged_folder).problems == ["b: is a folder that cannot be opened"]


@pytest.mark.parametrize(
    "array",
    [
        *(np.zeros(shape, np.uint8) for shape in [(9,), (9, 9, 5), (2, 9, 9, 3), (0, 9)]),
        *(np.full((9, 9), value) for value in (1.5, -0.5, float("nan"), 7, "x")),
    ],
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(PictureError, match=r"expected \(H, W\)"):
        read_picture(array)


def test_the_models_own_size_is_taken_as_it_is():
    image = np.random.RandomState(1).randint(0, 256, (20, 120, 3)).astype(np.uint8)
    laid_out, count = lay_out(Image.fromarray(image), **MODEL)
    assert np.array_equal(laid_out, image)
    assert count == 4


@pytest.mark.parametrize(("size", "inside"), [((60, 20), (10, 30)), ((10, 40), (20, 5)), ((3, 2), (20, 30))])
def test_one_photo_is_letterboxed_and_the_rest_is_noise(size, inside):
    photo = Image.new("RGB", size, (250, 10, 20))
    laid_out, count = lay_out(photo, **MODEL)
    assert laid_out.shape == (20, 120, 3)
    assert count == 1
    red = (laid_out[:, :30] == (250, 10, 20)).all(2)
    rows, columns = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    assert (len(rows), len(columns)) == inside
    assert red[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    assert abs(rows[0] - (19 - rows[-1])) <= 1
    assert (laid_out[:, :30][~red] == 128).all()
    noise = laid_out[:, 30:].astype(float)
    assert abs(noise.mean() - 127.5) < 5
    assert noise.std() > 65
    assert not np.array_equal(noise[:, :30], noise[:, 30:60])


def test_noise_depends_on_the_picture_alone():
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    noise = [lay_out(photo, **MODEL)[0][:, 30:] for photo in (first, second, first)]
    assert np.array_equal(noise[0], noise[2])
    assert not np.array_equal(noise[0], noise[1])


def test_views_side_by_side_are_cut():
    wide = Image.new("RGB", (90, 20), "red")
    wide.paste("blue", (45, 0, 90, 20))
    laid_out, count = lay_out(wide, **MODEL, views=2)
    assert count == 2
    assert (laid_out[5:15, :30] == (255, 0, 0)).all()
    assert (laid_out[5:15, 30:60] == (0, 0, 255)).all()
    assert laid_out[:, 60:].std() > 65
    own_size = Image.new("RGB", (120, 20), "red")
    assert lay_out(own_size, **MODEL, views=1)[1] == 1


@pytest.mark.parametrize("views", [0, 5, -1])
def test_more_views_than_the_model_has(views):
    with pytest.raises(PictureError, match="expected 1 to 4"):
        lay_out(Image.new("RGB", (60, 60)), **MODEL, views=views)


def test_too_narrow_for_its_views():
    with pytest.raises(PictureError, match="9 pixels wide, too narrow"):
        lay_out(Image.new("RGB", (9, 60)), **MODEL, views=3)


def test_find_pictures(tmp_path):
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "in/c.tiff", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path) for path in find_pictures(tmp_path)] == [
        *map(Path, ("a.png", "b.JPG", "in/c.tiff"))
    ]


def test_folders_behind_links_are_found_once(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "in" / "once more").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "round").symlink_to(tmp_path / "in")
    assert find_pictures(tmp_path / "in") == [tmp_path / "in" / "link" / "a.png"]


def test_names_that_break_lines_are_escaped():
    assert shown("Straße 1.png") == "Straße 1.png"
    assert shown("a\nb\tc.png") == r"'a\nb\tc.png'"
    shown(os.fsdecode(b"\xff.png")).encode("utf-8")
