"""One picture of every kind and mode, decoded to RGB."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image
from sklearn.datasets import load_sample_image

from clipretrieval.errors import ImageDecodeError
from clipretrieval.images import RawImage, decode, to_rgb

Pixels = npt.NDArray[np.uint8]
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
WIDE = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    """The file that Pillow writes of an image."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(payload: object) -> Pixels:
    """The RGB pixels that a picture decodes to."""
    image = decode(RawImage(0, payload)).image
    assert image.mode == "RGB"
    return np.asarray(image)


def tripled(grey: npt.NDArray[np.number]) -> Pixels:
    """The RGB pixels of a grey picture."""
    return np.repeat(grey[:, :, None], 3, axis=2).astype(np.uint8)


def over_white(colour: Pixels, alpha: Pixels) -> npt.NDArray[np.float64]:
    """Colours composited over white, not rounded."""
    opacity = alpha[:, :, None] / 255.0
    return colour * opacity + 255.0 * (1.0 - opacity)


def rounded(wide: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """16-bit greys scaled to 8 bits."""
    return np.rint(wide.astype(np.float64) * 255.0 / 65535.0)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda s: (*s, 3))))
def test_rgb_pixels_survive_every_lossless_way_in(array: Pixels) -> None:
    """An RGB array, its tensor, its PIL image and its PNG all decode to the same pixels."""
    image = Image.fromarray(array)
    chw = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for payload in (array, chw, chw.float() / 255, chw.double() / 255, image, encoded(image)):
        assert np.array_equal(pixels(payload), array)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "TGA", "PCX", "SGI"])
def test_lossless_formats_give_their_pixels_back(file_format: str, tmp_path: Path) -> None:
    """Every lossless file format decodes to the pixels that were written."""
    path = tmp_path / "picture.any"
    path.write_bytes(encoded(Image.fromarray(COLOUR), file_format))
    assert np.array_equal(pixels(path), COLOUR)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_real_photographs_decode_as_pillow_decodes_them(name: str) -> None:
    """The photographs that scikit-learn ships survive PNG exactly and JPEG closely."""
    photograph = load_sample_image(name)
    image = Image.fromarray(photograph)
    assert np.array_equal(pixels(encoded(image)), photograph)
    error = np.abs(pixels(encoded(image, "JPEG", quality=95)).astype(int) - photograph)
    assert 0 < error.mean() < 3


def test_grey_one_bit_and_palette_become_rgb() -> None:
    """Grey, one-bit and opaque palette files keep their colours."""
    assert np.array_equal(pixels(encoded(Image.fromarray(GREY))), tripled(GREY))
    bits = Image.fromarray(GREY).point(lambda value: 255 * (value > 99), mode="1")
    assert np.array_equal(pixels(encoded(bits)), tripled(255 * (GREY > 99)))
    palette = Image.fromarray(COLOUR).quantize(16)
    assert np.array_equal(pixels(encoded(palette)), np.asarray(palette.convert("RGB")))


def test_transparency_is_composited_over_white() -> None:
    """RGBA and LA pictures show white through, in proportion to their alpha."""
    alpha = np.random.default_rng(1).integers(0, 256, COLOUR.shape[:2], dtype=np.uint8)
    rgba = np.dstack([COLOUR, alpha])
    expected = over_white(COLOUR, alpha)
    for payload in (encoded(Image.fromarray(rgba)), rgba, torch.from_numpy(rgba.transpose(2, 0, 1).copy())):
        assert np.abs(pixels(payload) - expected).max() <= 1
    la = Image.merge("LA", [Image.fromarray(COLOUR[..., 0]), Image.fromarray(alpha)])
    assert np.abs(pixels(encoded(la)) - over_white(tripled(COLOUR[..., 0]), alpha)).max() <= 1


def test_rare_alpha_modes_are_composited_over_white() -> None:
    """Premultiplied and palette-with-alpha images look like their straight counterparts."""
    alpha = Image.frombytes("L", (2, 1), b"\xff\x00")
    grey = Image.new("L", (2, 1), 40)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 40, 40, 40])
    palette = palette.convert("PA")
    palette.putalpha(alpha)
    premultiplied = Image.merge("RGBA", [grey, grey, grey, alpha]).convert("RGBa")
    for image in (premultiplied, Image.merge("LA", [grey, alpha]).convert("La"), palette):
        assert pixels(image).tolist() == [[[40, 40, 40], [255, 255, 255]]], image.mode


def test_transparent_palette_entries_and_key_colours_turn_white() -> None:
    """Palette transparency, as one entry or one alpha an entry, and key colours become white."""
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.putdata([0, 1, 2])
    green_missing = [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    assert pixels(encoded(palette, "GIF", transparency=1)).tolist() == green_missing
    assert pixels(encoded(palette, transparency=1)).tolist() == green_missing
    faded = pixels(encoded(palette, transparency=bytes([255, 0, 51])))
    assert faded.tolist() == [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]]
    keyed = Image.fromarray(np.array([[7, 8]], dtype=np.uint8))
    assert pixels(encoded(keyed, transparency=8))[0, :, 0].tolist() == [7, 255]
    assert pixels(encoded(keyed.convert("RGB"), transparency=(8, 8, 8)))[0, :, 0].tolist() == [7, 255]
    deep = Image.fromarray(np.array([[257, 514]], dtype=np.uint16))
    assert pixels(encoded(deep, transparency=514))[0, :, 0].tolist() == [1, 255]


def test_sixteen_bits_are_scaled_down_not_clipped() -> None:
    """16-bit greys, as PNG, TIFF of either byte order, PGM and mode I, are scaled from 65535 and rounded."""
    expected = tripled(rounded(WIDE))
    little = Image.fromarray(WIDE)
    big = Image.frombytes("I;16B", little.size, WIDE.astype(">u2").tobytes())
    integers = Image.fromarray(WIDE.astype(np.int32))
    files = [encoded(little), encoded(little, "TIFF"), encoded(big, "TIFF"), encoded(integers, "PPM")]
    for payload in (little, big, integers, *files):
        assert np.array_equal(pixels(payload), expected)
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(pixels(Image.fromarray(every)), tripled(rounded(every)))


def test_wide_integers_and_floats_are_clipped_to_their_range() -> None:
    """Mode I clips to [0, 65535], mode F rounds and clips to [0, 255] and refuses what is not finite."""
    integers = Image.fromarray(np.array([[-5, 0, 65535, 10**6]], dtype=np.int32))
    assert pixels(integers)[0, :, 0].tolist() == [0, 0, 255, 255]
    floats = Image.fromarray(np.array([[-1.0, 0.4, 99.6, 300.0]], dtype=np.float32))
    for payload in (floats, encoded(floats, "TIFF")):
        assert pixels(payload)[0, :, 0].tolist() == [0, 0, 100, 255]
    with pytest.raises(ImageDecodeError, match="not finite"):
        pixels(Image.fromarray(np.array([[np.nan, 1.0]], dtype=np.float32)))


def test_other_colour_spaces_become_rgb() -> None:
    """CMYK, YCbCr, LAB and HSV pictures keep their colours."""
    cmyk = np.random.default_rng(2).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    image = Image.frombytes("CMYK", (4, 4), cmyk.tobytes())
    ink = cmyk.astype(float)
    expected = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    assert np.abs(pixels(encoded(image, "TIFF")) - expected).max() <= 1
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(pixels(encoded(flat, "JPEG")).astype(int) - [255, 0, 0]).max() <= 3
    colours = Image.fromarray(COLOUR)
    for mode, tolerance in (("YCbCr", 3), ("HSV", 8)):
        assert np.abs(pixels(colours.convert(mode)).astype(int) - COLOUR).max() <= tolerance
    lab = Image.new("LAB", (2, 2), (255, 128, 128))
    assert np.abs(pixels(encoded(lab, "TIFF")).astype(int) - 255).max() <= 1


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_honoured(file_format: str) -> None:
    """Each of the eight orientations is undone, in files and in lazily opened images."""
    a = COLOUR
    upright = {
        1: a,
        2: a[:, ::-1],
        3: a[::-1, ::-1],
        4: a[::-1],
        5: a.swapaxes(0, 1),
        6: np.rot90(a, -1),
        7: a[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(a),
    }
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(a), file_format, exif=exif, lossless=True)
        assert np.array_equal(pixels(data), expected), orientation
        with Image.open(io.BytesIO(data)) as lazy:
            assert np.array_equal(np.asarray(to_rgb(lazy)), expected), orientation


def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    """A picture whose EXIF block is rubbish decodes without being turned."""
    assert np.array_equal(pixels(encoded(Image.fromarray(COLOUR), exif=b"Exif\0\0rubbish")), COLOUR)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(file_format: str) -> None:
    """Of several frames the first is decoded."""
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True)
    assert (pixels(data) == [255, 0, 0]).all()


def test_the_callers_image_is_left_alone() -> None:
    """Decoding gives a copy: the caller's image keeps its mode, metadata and pixels."""
    image = Image.fromarray(COLOUR)
    image.info["exif"] = b"Exif\0\0rubbish"
    decoded = decode(RawImage(0, image)).image
    decoded.paste((0, 0, 0), (0, 0, *decoded.size))
    assert np.array_equal(np.asarray(image), COLOUR)
    assert image.info == {"exif": b"Exif\0\0rubbish"}
    assert decoded.info == {}
    array = COLOUR.copy()
    array.flags.writeable = False
    decode(RawImage(0, array)).image.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(array, COLOUR)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_tensors_are_rounded(dtype: torch.dtype) -> None:
    """Float tensors in [0, 1] of every precision, even ones that need a gradient, round to 8 bits."""
    tensor = torch.tensor([[[0.0, 0.25, 0.5, 1.0]]], dtype=dtype, requires_grad=True)
    assert pixels(tensor)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.5, r"\[0, 1.5\].*expected \[0, 1\]"), (-0.1, "expected"), (float("nan"), "finite")],
)
def test_float_tensors_outside_the_unit_range_are_refused(value: float, words: str) -> None:
    """A float tensor that is not in [0, 1] is refused with its number and its range."""
    tensor = torch.zeros(3, 2, 2)
    tensor[0, 0, 0] = value
    with pytest.raises(ImageDecodeError, match=f"image number 17.*{words}"):
        decode(RawImage(17, tensor))
