"""Images of too many pixels, and images whose data end before their pixels do."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from crafted_images import BOMB, encoded, icon, png, tiff
from PIL import Image, ImageFile
from sklearn.datasets import load_sample_image

from clipretrieval import ImageDecodeError, InvalidInputError, RetrievalClassifier, StagedEncoder
from clipretrieval.images import RawImage, SkippedImage, content_id, decode, iter_images
from clipretrieval.images import rgb as _rgb

COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PHOTO = Image.fromarray(load_sample_image("flower.jpg")).crop((0, 0, 120, 80))
MODES = {"PNG": ("L", "P", "RGBA", "I;16", "1"), "TIFF": ("RGB", "CMYK", "F", "I;16"), "GIF": ("P",)}
FORMATS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("PPM", {}),
    ("TGA", {"compression": "tga_rle"}),
    ("PCX", {}),
    ("SGI", {}),
    ("DDS", {}),
    ("JPEG2000", {}),
    ("ICO", {"sizes": [(120, 80)]}),
]


def orientated() -> bytes:
    """A JPEG that lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(COLOUR), "JPEG", exif=exif)


def everything() -> list[object]:
    """One picture of 30 × 20 pixels in all the ways in which it may come."""
    whole = Image.fromarray(COLOUR)
    found: list[object] = [encoded(whole, kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")]
    for kind, modes in MODES.items():
        grey = whole.convert("L")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        found += [encoded(deep if mode == "I;16" else whole.convert(mode), kind) for mode in modes]
    frames = [whole, Image.fromarray(255 - COLOUR)]
    for kind in ("PNG", "GIF", "WEBP", "TIFF"):
        found.append(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    found += [icon(encoded(whole), 30, 20), orientated(), COLOUR, COLOUR[..., 0], whole]
    found += [torch.from_numpy(COLOUR.transpose(2, 0, 1).copy()), Image.open(io.BytesIO(encoded(whole)))]
    return found


def test_the_bound_holds_for_every_kind_of_picture(tmp_path: Path) -> None:
    """Pictures of just the bound pass, and one pixel less refuses each of them, whatever they come as."""
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(COLOUR)))
    for payload in [*everything(), path, str(path)]:
        image = decode(RawImage(0, payload), max_pixels=600).image
        assert image.size[0] * image.size[1] == 600
        with pytest.raises(
            ImageDecodeError, match=r"30 × 20 pixels, 600 in all, but at most 599 are decoded"
        ):
            decode(RawImage(0, payload), max_pixels=599)
        assert decode(RawImage(0, payload), max_pixels=None).image.size == image.size
    for payload in (COLOUR, Image.fromarray(COLOUR)):
        with pytest.raises(ImageDecodeError, match=r"image number 3 .* max_pixels"):
            content_id(RawImage(3, payload), max_pixels=599)
    with pytest.raises(ImageDecodeError, match=r"a\.png.*max_pixels"):
        decode(RawImage(0, path), max_pixels=599)


def test_the_bound_lies_at_75_million_pixels() -> None:
    """By default 75,000,000 pixels are let past, to where missing data show, and one row more is not."""
    with pytest.raises(ImageDecodeError, match="data end before its last row"):
        decode(RawImage(0, png(7_500, 10_000)))
    with pytest.raises(ImageDecodeError, match="7500 × 10001 pixels, 75,007,500 in all"):
        decode(RawImage(0, png(7_500, 10_001)))


def test_a_tiny_file_of_a_huge_picture_costs_next_to_nothing(tmp_path: Path) -> None:
    """Files of some bytes that claim millions of pixels are refused without memory for any of them."""
    bitmap = struct.pack("<IIIHHIIIIII", 40, 12_000, 24_000, 1, 8, 1, 0, 0, 0, 256, 0) + bytes(1100)
    assert len(BOMB) < 70
    for place, content in enumerate(
        [BOMB, png(12_000, 6_000, bits=16, colour=6), icon(BOMB), icon(bitmap), encoded(PHOTO)]
    ):
        (tmp_path / f"{place}").write_bytes(content)
    script = (
        "import resource, sys\n"
        "from clipretrieval.images import iter_images\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "next(iter_images(sys.argv[-1]))\n"
        "before, skipped = used(), []\n"
        "assert not list(iter_images(sys.argv[1:-1], on_error='skip', skipped=skipped))\n"
        "print(used() - before, len(skipped))\n"
    )
    paths = sorted(tmp_path.iterdir())
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    used, skipped = map(int, done.stdout.split())
    assert skipped == 4
    assert used < 20_000  # KiB, where the grey pixels alone would take 140,000


def test_tiles_larger_than_their_picture_are_bounded() -> None:
    """A TIFF whose tiles have more pixels than are allowed is refused, though the picture is small."""
    tile = zlib.compress(bytes(64 * 64))
    tags = {256: 30, 257: 20, 258: 8, 259: 8, 262: 1, 277: 1, 322: 64, 323: 64, 324: 8, 325: len(tile)}
    assert decode(RawImage(0, tiff(tags, tile))).image.size == (30, 20)
    with pytest.raises(ImageDecodeError, match="16000 × 16000 pixels"):
        decode(RawImage(0, tiff(tags | {322: 16_000, 323: 16_000}, tile)))


def test_iter_images_and_the_encoder_hand_the_bound_on(tmp_path: Path) -> None:
    """Sources are read with the bound that was given: larger pictures are raised, or skipped and listed."""
    small, large = COLOUR[:10], COLOUR
    skipped: list[SkippedImage] = []
    found = list(iter_images([small, large], on_error="skip", skipped=skipped, max_pixels=300))
    assert [item.index for item in found] == [0]
    assert [item.index for item in skipped] == [1]
    encoder = StagedEncoder(stage="pixel", max_pixels=300)
    assert encoder.encode([small]).shape == (1, 3072)
    paths = [tmp_path / name for name in ("small.png", "large.png")]
    for path, array in zip(paths, (small, large), strict=True):
        path.write_bytes(encoded(Image.fromarray(array)))
    for images in ([large], [Image.fromarray(large)], [paths[1]]):
        with pytest.raises(ImageDecodeError, match="max_pixels"):
            encoder.encode(images)
        with pytest.raises(ImageDecodeError, match="max_pixels"):
            encoder.begin(images)
    classifier = RetrievalClassifier(encoder, "memory").fit([*paths, small + 1], [1, 2, 3], on_error="skip")
    assert [item.source for item in classifier.skipped_] == [str(paths[1])]
    with pytest.raises(ImageDecodeError, match=r"large\.png"):
        classifier.predict(paths)


class Mean:
    """An encoder that only encodes: the mean colour."""

    dim, fingerprint, max_pixels = 3, {"mean": 1}, 600

    def encode(self, images: list[Image.Image]) -> np.ndarray:
        self.seen = [*getattr(self, "seen", []), len(images)]
        return np.array([np.asarray(image).mean(axis=(0, 1)) for image in images], dtype=np.float32)


def test_other_encoders_may_have_a_bound() -> None:
    """An encoder that only encodes is given no picture of more pixels than its attribute allows."""

    classifier = RetrievalClassifier(Mean(), "memory").fit([COLOUR, COLOUR[5:15]], [1, 2])
    with pytest.raises(ImageDecodeError, match="max_pixels"):
        classifier.predict(np.concatenate([COLOUR, COLOUR[:1]]))


def test_other_encoders_get_fewer_large_pictures_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch ends where its pictures have many pixels, and none is lost by that."""
    monkeypatch.setattr("clipretrieval.encoding.streams._MOST_PIXELS", 1000)
    encoder = Mean()
    images = [np.roll(COLOUR, place, axis=0) // (place + 1) for place in range(5)]
    classifier = RetrievalClassifier(encoder, "memory").fit(images, [1, 2, 3, 4, 5])
    assert encoder.seen == [2, 2, 1]
    assert classifier.predict(images).tolist() == [1, 2, 3, 4, 5]


def test_the_bound_is_kept_and_decides_no_vector(tmp_path: Path) -> None:
    """A saved classifier has its encoder's bound; fingerprints have none, nor has a config the default."""
    plain = StagedEncoder(stage="pixel")
    bounded, free = (StagedEncoder(stage="pixel", max_pixels=value) for value in (600, None))
    assert plain.fingerprint == bounded.fingerprint == free.fingerprint
    assert (plain.max_pixels, bounded.max_pixels, free.max_pixels) == (75_000_000, 600, None)
    assert "max_pixels" not in plain.config()
    for encoder in (plain, bounded, free):
        config = json.loads(json.dumps(encoder.config()))
        assert StagedEncoder.from_config(config).max_pixels == encoder.max_pixels
        RetrievalClassifier(encoder).fit([COLOUR, 255 - COLOUR], [1, 2]).save(tmp_path / "kept")
        loaded = RetrievalClassifier.load(tmp_path / "kept")
        assert loaded.encoder.max_pixels == encoder.max_pixels
        loaded.store_.close()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "many", 10**30])
def test_a_bound_is_a_whole_number(value: object) -> None:
    """Anything but None and a whole number of at least 1 is refused at the call."""
    for ask in (lambda: iter_images([COLOUR], max_pixels=value), lambda: StagedEncoder(max_pixels=value)):  # type: ignore[arg-type]
        with pytest.raises(InvalidInputError, match="max_pixels must be a whole number, at least 1"):
            ask()


@pytest.mark.parametrize(
    ("width", "height", "options"),
    [
        (100, 80, {}),
        (100, 80, {"bits": 1}),
        (100, 80, {"colour": 2}),
        (100, 80, {"colour": 6, "bits": 16}),
        (101, 83, {"interlaced": True}),
        (1, 9, {"interlaced": True, "colour": 2}),
    ],
)
def test_a_png_needs_data_for_every_row(width: int, height: int, options: dict[str, int]) -> None:
    """A PNG decodes with all its rows, also black ones, and is refused if its last row is missing."""
    bits = options.get("bits", 8) * {0: 1, 2: 3, 6: 4}[options.get("colour", 0)]
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b""
    for left, top, right, down in passes if options.get("interlaced") else ((0, 0, 1, 1),):
        columns = len(range(left, width, right))
        if columns:
            rows += bytes(1 + (columns * bits + 7) // 8) * len(range(top, height, down))
    image = decode(RawImage(0, png(width, height, rows, **options))).image
    level = 255 if options.get("colour") == 6 else 0  # black, or white behind what is transparent
    assert (image.size, image.getextrema()) == ((width, height), ((level, level),) * 3)
    for missing in (1, len(rows) // 2, len(rows)):
        with pytest.raises(ImageDecodeError, match=r"data end before its last row|truncated"):
            decode(RawImage(0, png(width, height, rows[:-missing], **options)))


def test_a_png_without_its_end_is_cut_off() -> None:
    """A PNG whose last chunk is missing is refused, and so is one whose data are none."""
    whole = encoded(Image.fromarray(COLOUR))
    assert decode(RawImage(0, whole + b"appended")).image.size == (30, 20)
    for content in (whole[:-12], whole[: -4 - 12], png(30, 20, b"")):
        with pytest.raises(ImageDecodeError, match=r"cut off|truncated"):
            decode(RawImage(0, content))


@pytest.mark.parametrize(
    ("file_format", "options", "lenient"),
    [
        (name, options, lenient)
        for name, options in FORMATS
        for lenient in (False, True)
        if not (lenient and name in ("JPEG2000", "ICO"))  # Pillow gives no sign of it
    ],
    ids=str,
)
def test_no_file_decodes_in_part(
    file_format: str, options: dict[str, object], lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that ends too early gives all its pixels or none, whatever others have set Pillow to accept."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole = encoded(PHOTO, file_format, **options)
    pixels = np.asarray(decode(RawImage(0, whole)).image)
    for share in range(1, 40):
        try:
            part = decode(RawImage(0, whole[: len(whole) * share // 40])).image
        except ImageDecodeError:
            continue
        assert np.array_equal(np.asarray(part), pixels)


def test_strips_change_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures that are converted a few rows at a time look as if converted whole, and have the same id."""
    found = []
    for strip in (2**18, 1, 7 * 30):
        monkeypatch.setattr(_rgb, "_STRIP", strip)
        items = [decode(RawImage(0, payload)) for payload in everything()]
        alpha = Image.fromarray(COLOUR).copy()
        alpha.putalpha(Image.fromarray(COLOUR[..., 1]))
        items += [decode(RawImage(0, image)) for image in (alpha, alpha.convert("LA"), alpha.convert("RGBa"))]
        palette = Image.fromarray(COLOUR).quantize(16)
        items += [
            decode(RawImage(0, encoded(palette, transparency=place)))
            for place in (3, bytes(range(0, 160, 10)))
        ]
        items.append(decode(RawImage(0, Image.frombytes("I;16B", (30, 10), COLOUR.tobytes()[:600]))))
        found.append([(item.id, item.image.tobytes()) for item in items])
    assert found[0] == found[1] == found[2]


def test_large_pictures_are_cut_before_the_next_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few pixels may wait, a batch has the same vectors, ids and known pictures."""
    encoder = StagedEncoder(stage="pixel")
    images = [np.roll(COLOUR, place, axis=0) for place in range(5)]
    expected = next(encoder.stream(images))
    known = {expected.ids[1], expected.ids[4]}
    monkeypatch.setattr("clipretrieval.encoding.pipeline._MOST_PIXELS", 1000)
    found = next(encoder.stream(images))
    assert found.ids == expected.ids
    assert np.array_equal(found.vectors["pixel"], expected.vectors["pixel"])
    part = next(encoder.stream(images, known=lambda ids: known.intersection(ids)))
    assert [item.index for item in part.known] == [1, 4]
    assert np.array_equal(part.vectors["pixel"], expected.vectors["pixel"][[0, 2, 3]])


@pytest.mark.parametrize(("name", "said"), [("BLP", ".blp"), ("ICNS", ".icns"), ("IPTC", ".iim")])
def test_files_that_hide_another_file_are_not_decoded(name: str, said: str) -> None:
    """Formats whose image is a file of another format, of a size of its own, are none that is decoded."""
    from clipretrieval.images.formats import image_extensions

    assert said not in image_extensions()
    if name != "IPTC":
        with pytest.raises(ImageDecodeError, match="wraps another image file"):
            decode(RawImage(0, encoded(PHOTO.quantize() if name == "BLP" else PHOTO, name)))
