"""Exported encoders: the vectors and the place of the encoder that was exported, without torch."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from forked import ended_well, fork
from numpy.testing import assert_array_equal
from without_torch import run_without_torch

import clipretrieval
from clipretrieval import (
    ClipRetrievalWarning,
    FingerprintMismatchError,
    InvalidInputError,
    OnnxEncoder,
    RetrievalClassifier,
    StagedEncoder,
    WeightsUnavailableError,
)
from clipretrieval.encoding.onnx import onnx_encoder
from clipretrieval.encoding.onnx.onnx_file import DIGEST_KEY, KEY, UNSEALED, check_seal, seal


@pytest.fixture(scope="module")
def encoder(tiny_model):
    """The encoder that is exported."""
    return StagedEncoder(tiny_model, stage="mid", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    """Its file."""
    return encoder.export(tmp_path_factory.mktemp("exported") / "mid.onnx")


def told_without_torch(program):
    """Return what a program prints."""
    done = run_without_torch(program)
    assert done.returncode == 0, done.stderr
    return done.stdout


def described_anew(path, target, change):
    """Copy an exported file with another description, sealed as it should be."""
    model = onnx.load_model(path)
    entries = {entry.key: entry for entry in model.metadata_props}
    content = json.loads(entries[KEY].value)
    change(content)
    entries[KEY].value = json.dumps(content)
    entries[DIGEST_KEY].value = UNSEALED
    target.write_bytes(seal(model.SerializeToString()))
    return target


def test_vectors_are_those_of_the_encoder(tiny_model, photographs, tmp_path):
    """Of every kind of stage under every pooling, at another size than the model's own."""
    stage, pooling = "pixel+stem+mid+late+final", "grid+tokens+gem+max+mean"
    encoder = StagedEncoder(
        tiny_model, stage=stage, pooling=pooling, image_size=96, precision="fp32", device="cpu"
    )
    found = OnnxEncoder(encoder.export(str(tmp_path / "encoder.onnx")))
    expected = encoder.encode(photographs)
    assert found.fingerprint == encoder.fingerprint
    for name in ("stage", "pooling", "dim", "image_size", "preprocessing"):
        assert getattr(found, name) == getattr(encoder, name)
    assert found.multiply_adds() == encoder.multiply_adds()
    vectors, start = found.encode(photographs), 0
    for part in encoder._output.parts:
        place = slice(start, start := start + part.dim)
        assert np.abs((vectors - expected)[:, place]).max() <= 1e-5 * np.abs(expected[:, place]).max(), part
    assert start == encoder.dim


def test_each_takes_the_other_s_place(encoder, exported, class_folder, tmp_path):
    classifier = RetrievalClassifier(encoder, "faiss", k=3).fit(class_folder / "train")
    expected = classifier.predict(class_folder / "test")
    classifier.save(tmp_path / "kept")
    classifier.store_.close()
    other = RetrievalClassifier.load(tmp_path / "kept", OnnxEncoder(exported))
    assert_array_equal(other.predict(class_folder / "test"), expected)
    other.partial_fit(class_folder / "test")
    assert other.store_.count() == 34
    other.save(tmp_path / "again")
    other.store_.close()
    # Saved with the file's own path, and opened without being asked for it.
    last = RetrievalClassifier.load(tmp_path / "again")
    assert isinstance(last.encoder, OnnxEncoder)
    assert last.encoder.config() == other.encoder.config()
    assert (last.predict(class_folder / "train") == "flower").sum() == 12
    last.store_.close()


def test_another_encoder_than_the_index_is_named(tiny_model, exported, class_folder, tmp_path):
    encoder = StagedEncoder(tiny_model, stage="late")
    classifier = RetrievalClassifier(encoder, "faiss").fit(class_folder / "train")
    classifier.save(tmp_path / "kept")
    classifier.store_.close()
    with pytest.raises(FingerprintMismatchError, match="stage: stored 'late', given 'mid'"):
        RetrievalClassifier.load(tmp_path / "kept", OnnxEncoder(exported))


def test_batches_do_not_matter(exported, photographs):
    whole = OnnxEncoder(exported).encode(photographs)
    for size in (1, 3):
        parts = OnnxEncoder(exported, batch_size=size, threads=1).encode(photographs)
        assert np.abs(parts - whole).max() <= 1e-5 * np.abs(whole).max()
    one = OnnxEncoder(exported).encode(photographs[0])
    assert np.abs(one - whole[:1]).max() <= 1e-5 * np.abs(whole).max()


def test_images_that_cannot_be_decoded(exported, class_folder, tmp_path):
    folder = tmp_path / "some"
    shutil.copytree(class_folder / "test" / "flower", folder)
    (folder / "02.jpg").write_bytes(b"no image")
    encoder = OnnxEncoder(exported)
    with pytest.warns(ClipRetrievalWarning, match="1 of 5 images could not be encoded"):
        rows = encoder.encode(sorted(folder.iterdir()), on_error="skip")
    assert np.isnan(rows).all(axis=1).tolist() == [False, False, True, False, False]
    with pytest.raises(clipretrieval.ImageDecodeError, match=r"02\.jpg"):
        encoder.encode(sorted(folder.iterdir()))
    with pytest.raises(clipretrieval.ImageDecodeError, match="max_pixels"):
        OnnxEncoder(exported, max_pixels=100).encode(folder / "01.png")


def test_known_images_are_not_encoded(exported, class_folder):
    encoder, told = OnnxEncoder(exported), []
    first = next(iter(encoder.stream(class_folder / "test")))
    batches = list(encoder.stream(class_folder / "test", known=lambda ids: [first.ids[0]], ahead=4))
    assert [image.id for batch in batches for image in batch.known] == first.ids[:1]
    assert sum(map(len, batches)) == 9
    assert len(next(iter(encoder.stream(class_folder / "test", stages=("mid",))))) == 10
    with pytest.raises(InvalidInputError, match="has one stage, here 'mid'"):
        encoder.stream(class_folder / "test", stages=("late",))
    encoder.encode(class_folder / "test", progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (10, 10)


def test_a_copy_is_the_same_encoder(exported, photographs):
    encoder = OnnxEncoder(exported, batch_size=5, threads=1, max_pixels=None)
    assert (encoder.plan.threads, encoder.plan.inner_batch) == (1, 5)
    expected = encoder.encode(photographs)
    for copied in (
        pickle.loads(pickle.dumps(encoder)),
        copy.deepcopy(encoder),
        OnnxEncoder.from_config(json.loads(json.dumps(encoder.config()))),
    ):
        assert copied.config() == encoder.config()
        assert_array_equal(copied.encode(photographs), expected)
    assert repr(encoder) == f"OnnxEncoder({str(exported)!r}, stage='mid', dim={encoder.dim})"
    with pytest.raises(AttributeError, match="never changes"):
        encoder.batch_size = 3
    for wrong in ({"model": "RN50"}, {"model": "onnx:"}, {"path": "x"}, {"model": None}):
        with pytest.raises(InvalidInputError, match="not an OnnxEncoder's"):
            OnnxEncoder.from_config({**encoder.config(), **wrong})


def test_a_forked_process_encodes(exported, photographs):
    """With several threads, which stay behind at a fork."""
    encoder = OnnxEncoder(exported, threads=2)
    expected = encoder.encode(photographs)
    assert ended_well(fork(lambda: assert_array_equal(encoder.encode(photographs), expected)))
    assert_array_equal(encoder.encode(photographs), expected)


def test_a_file_that_was_replaced_is_not_taken_for_the_same(tiny_model, exported, photographs, tmp_path):
    """A fork has the file opened again."""
    path = tmp_path / "encoder.onnx"
    shutil.copy(exported, path)
    encoder = OnnxEncoder(path)
    described_anew(exported, path, lambda found: found.update(library_version="another"))

    def encode():
        with pytest.raises(WeightsUnavailableError, match="another file has taken its place"):
            encoder.encode(photographs)

    assert ended_well(fork(encode))
    encode()


def test_any_change_of_a_file_is_found(exported, tmp_path):
    content, path = exported.read_bytes(), tmp_path / "changed.onnx"
    assert check_seal(content) in content.decode("latin-1")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(content), 50):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(WeightsUnavailableError, match=r"changed.onnx.*(changed after|not written by)"):
            OnnxEncoder(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(WeightsUnavailableError, match="changed after it was exported"):
        OnnxEncoder(path)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsUnavailableError, match=r"not written by StagedEncoder\.export"):
        OnnxEncoder(path)


def test_files_of_others_are_refused(exported, tmp_path):
    with pytest.raises(WeightsUnavailableError, match=r"gone\.onnx' cannot be read"):
        OnnxEncoder(tmp_path / "gone.onnx")
    with pytest.raises(WeightsUnavailableError, match="cannot be read"):
        OnnxEncoder(tmp_path)
    with pytest.raises(InvalidInputError, match="path must be a path"):
        OnnxEncoder(5)
    model = onnx.load_model(exported)
    del model.metadata_props[:]
    onnx.save_model(model, tmp_path / "theirs.onnx")
    with pytest.raises(WeightsUnavailableError, match=r"not written by StagedEncoder\.export"):
        OnnxEncoder(tmp_path / "theirs.onnx")


def test_weights_beside_the_file_are_refused(exported, tmp_path):
    """Nobody would notice that they are others."""
    model = onnx.load_model(exported)
    entries = {entry.key: entry for entry in model.metadata_props}
    entries[DIGEST_KEY].value = UNSEALED
    path = tmp_path / "parted.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    path.write_bytes(seal(path.read_bytes()))
    with pytest.raises(WeightsUnavailableError, match="lies in another file"):
        OnnxEncoder(path)


def test_what_onnx_runtime_refuses_is_told_with_its_version(exported, tmp_path):
    model = onnx.load_model(exported)
    model.ir_version = 1000
    {entry.key: entry for entry in model.metadata_props}[DIGEST_KEY].value = UNSEALED
    path = tmp_path / "later.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    with pytest.raises(WeightsUnavailableError, match=r"cannot load the encoder .* upgrade it"):
        OnnxEncoder(path)


def test_a_file_says_nothing_of_who_made_it(exported):
    content = exported.read_bytes()
    assert str(clipretrieval.__path__[0]).encode() not in content
    assert b"forward" not in content


def test_8_bits_have_a_fingerprint_of_their_own(encoder, exported, class_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_encoder, "_multiplies_bytes", lambda: True)
    found = OnnxEncoder(encoder.export(tmp_path / "int8.onnx", int8=class_folder / "train"))
    assert (found.plan.precision, found.dim) == ("int8", encoder.dim)
    own = found.fingerprint.pop("quantization")
    assert own.startswith("int8, sha256:")
    assert {**encoder.fingerprint, "quantization": own} == found.fingerprint
    classifier = RetrievalClassifier(encoder, "faiss").fit(class_folder / "train")
    with pytest.raises(FingerprintMismatchError, match="quantization: stored nothing, given 'int8"):
        RetrievalClassifier.from_store(classifier.store_, found)
    # Near the vectors of float32, and on images that it was not calibrated on too.
    expected, vectors = (each.encode(class_folder / "test") for each in (encoder, found))
    changed = np.linalg.norm(vectors - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert 0 < changed.max() < 0.1
    monkeypatch.setattr(onnx_encoder, "_multiplies_bytes", lambda: False)
    with pytest.raises(InvalidInputError, match="this CPU has no instructions for them"):
        OnnxEncoder(found.path)
    with pytest.raises(InvalidInputError, match="no images to calibrate on"):
        encoder.export(tmp_path / "none.onnx", int8=[])


def test_what_8_bits_are_calibrated_on_is_in_the_fingerprint(tiny_model, class_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_encoder, "_multiplies_bytes", lambda: True)
    stem = StagedEncoder(tiny_model, stage="stem", precision="fp32", device="cpu")
    one, again, other = (
        OnnxEncoder(stem.export(tmp_path / f"{number}.onnx", int8=class_folder / part)).fingerprint
        for number, part in enumerate(("train", "train", "test/flower"))
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "flags : fpu avx2 avx512f", False),
        ("x86_64", "flags : fpu avx2 avx_vnni", True),
        ("AMD64", None, False),
        ("aarch64", "Features : fp asimd", True),
    ],
)
def test_instructions_for_bytes_are_found(monkeypatch, machine, flags, expected):
    def read_text(self, encoding):
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(onnx_encoder.platform, "machine", lambda: machine)
    monkeypatch.setattr(onnx_encoder.Path, "read_text", read_text)
    assert onnx_encoder._multiplies_bytes() is expected


def test_several_threads_export(tiny_model, exported, tmp_path):
    """Torch converts one model at a time; a file that is there is replaced."""
    stages = ("stem", "layer1.0")
    made = [StagedEncoder(tiny_model, stage=stage, precision="fp32") for stage in stages]
    shutil.copy(exported, tmp_path / "stem.onnx")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda encoder: encoder.export(tmp_path / f"{encoder.stage}.onnx"), made))
    assert [OnnxEncoder(path).fingerprint for path in paths] == [each.fingerprint for each in made]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["layer1.0.onnx", "stem.onnx"]


def test_a_file_of_another_version_is_named(exported, tmp_path):
    later = described_anew(exported, tmp_path / "later.onnx", lambda found: found.update(format_version=9))
    with pytest.raises(WeightsUnavailableError, match=r"format version 9, and .* runs version 1"):
        OnnxEncoder(later)


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.update(stage="late"),
        lambda found: found.update(image_size=63),
        lambda found: found.update(image_size=96),
        lambda found: found.update(preprocessing=None),
        lambda found: found.update(architecture={"layers": [1]}),
        lambda found: found.update(strange=1),
        lambda found: found.pop("fingerprint"),
        lambda found: found["architecture"].update(width=16),
    ],
)
def test_a_description_that_is_wrong_is_refused(exported, tmp_path, change):
    path = described_anew(exported, tmp_path / "wrong.onnx", change)
    with pytest.raises(WeightsUnavailableError, match=r"wrong\.onnx' cannot be used"):
        OnnxEncoder(path)


def test_what_cannot_be_exported(encoder, tmp_path):
    with pytest.raises(InvalidInputError, match="'pixel' runs no network"):
        StagedEncoder(stage="pixel").export(tmp_path / "pixel.onnx")
    with pytest.raises(InvalidInputError, match="cannot be written"):
        encoder.export(tmp_path / "gone" / "mid.onnx")
    with pytest.raises(InvalidInputError, match="path must be a path"):
        encoder.export(None)
    assert list(tmp_path.iterdir()) == []


def test_an_exported_encoder_is_no_model(exported):
    with pytest.raises(InvalidInputError, match="open it with OnnxEncoder"):
        StagedEncoder(f"onnx:{exported}")


ONE = "np.zeros((1, 8, 8, 3), np.uint8)"
USES = [
    "StagedEncoder(stage='mid')",
    "pixel.fingerprint_of('mid')",
    f"pixel.encode_stages({ONE}, ['mid'])",
    f"pixel.begin({ONE})",
    f"list(pixel.stream_exits({ONE}, stages=['layer1', 'mid'], stay_on=print))",
    "pixel.text",
    "pixel.device",
    "clipretrieval.ZeroShotClassifier('RN50', ['a', 'b']).predict('a.jpg')",
    "clipretrieval.CascadeClassifier(pixel, ['stem', 'mid']).fit([np.zeros((8, 8, 3), 'u1')], [0])",
]


def test_nothing_of_torch_is_needed_and_what_needs_it_is_named(encoder, exported, class_folder):
    """Nor for the names that are not used."""
    folder = str(class_folder / "train")
    answers, *told = told_without_torch(
        "import clipretrieval, numpy as np\n"
        "for name in clipretrieval.__all__:\n    getattr(clipretrieval, name)\n"
        "from clipretrieval import MissingDependencyError, StagedEncoder\n"
        f"encoder = clipretrieval.OnnxEncoder({str(exported)!r})\n"
        f"made = clipretrieval.RetrievalClassifier(encoder, 'faiss', head='discriminant').fit({folder!r})\n"
        f"print(*made.predict({str(class_folder / 'test')!r}))\n"
        "pixel = StagedEncoder(stage='pixel')\n"
        f"for use in {USES!r}:\n"
        "    try:\n        exec(use)\n    except MissingDependencyError as error:\n        print(error)"
    ).splitlines()
    made = RetrievalClassifier(encoder, "faiss", head="discriminant").fit(folder)
    assert answers.split() == made.predict(class_folder / "test").tolist()
    assert len(told) == len(USES)
    for line in told:
        assert "needs torch, which is not installed; run: pip install torch" in line
        assert "OnnxEncoder(path)" in line
