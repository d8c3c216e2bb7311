"""Exported encoders: the vectors and the place of the encoder that was exported, without torch."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from forked import FORKS, ended_well, fork
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
from clipretrieval.encoding.onnx.onnx_file import DIGEST_KEY, KEY, UNSEALED, check_seal, seal
from clipretrieval.encoding.onnx.planning import RUNTIMES
from clipretrieval.encoding.onnx.runtimes.signal_stack import SignalStack


@pytest.fixture(scope="module")
def encoder(tiny_model):
    """The encoder that is exported."""
    return StagedEncoder(tiny_model, stage="mid", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def exported(encoder, tmp_path_factory):
    """Its file."""
    return encoder.export(tmp_path_factory.mktemp("exported") / "mid.onnx")


@pytest.fixture(scope="module")
def quantized(tiny_model, class_folder, tmp_path_factory):
    """An encoder of three stages, and its file in 8 bits."""
    encoder = StagedEncoder(tiny_model, stage="stem+mid+late", precision="fp32", device="cpu")
    path = tmp_path_factory.mktemp("quantized") / "int8.onnx"
    return encoder, encoder.export(path, int8=class_folder / "train")


@pytest.fixture(params=RUNTIMES)
def opened(request):
    """A function that opens a file by one of the runtimes, in float32 or in the file's 8 bits."""

    def open_file(path, **options):
        return OnnxEncoder(path, runtime=request.param, **options)

    return open_file


@pytest.fixture
def bytes_are_multiplied(monkeypatch):
    """Whatever this CPU has: where 8 bits overflow, vectors are near enough still."""
    for module in ("onnx_runtime_session", "openvino_session"):
        monkeypatch.setattr(f"clipretrieval.encoding.onnx.runtimes.{module}.multiplies_bytes", lambda: True)


def largest_change(vectors, expected):
    """Return by how much of its length a vector differs, at most."""
    norm = np.linalg.norm
    return (norm(vectors - expected, axis=1) / norm(expected, axis=1)).max()


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
    path = encoder.export(str(tmp_path / "encoder.onnx"))
    expected = encoder.encode(photographs)
    for runtime in RUNTIMES:
        found = OnnxEncoder(path, runtime=runtime, precision="fp32")
        assert found.fingerprint == encoder.fingerprint
        for name in ("stage", "pooling", "dim", "image_size", "preprocessing"):
            assert getattr(found, name) == getattr(encoder, name)
        assert found.multiply_adds() == encoder.multiply_adds()
        vectors, start = found.encode(photographs), 0
        for part in encoder._output.parts:
            place = slice(start, start := start + part.dim)
            change = np.abs(vectors - expected)[:, place].max()
            assert change <= 1e-5 * np.abs(expected[:, place]).max(), (runtime, part)
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


def test_batches_do_not_matter(exported, photographs, opened):
    """More images than a pass takes, a rest of few and of many, and one, on one core and on two."""
    images = [photographs[number % len(photographs)] for number in range(21)]
    whole = OnnxEncoder(exported).encode(images)
    for options in ({"batch_size": 1}, {"batch_size": 3}, {}):
        for threads in (1, 2):
            parts = opened(exported, precision="fp32", threads=threads, **options).encode(images)
            assert np.abs(parts - whole).max() <= 1e-5 * np.abs(whole).max()
    one = opened(exported, precision="fp32").encode(photographs[0])
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


def test_a_copy_is_the_same_encoder(exported, photographs, opened):
    encoder = opened(exported, batch_size=5, threads=1, max_pixels=None, precision="fp32")
    assert (encoder.plan.threads, encoder.plan.inner_batch) == (1, 5)
    expected = encoder.encode(photographs)
    for copied in (
        pickle.loads(pickle.dumps(encoder)),
        copy.deepcopy(encoder),
        OnnxEncoder.from_config(json.loads(json.dumps(encoder.config()))),
    ):
        assert copied.config() == encoder.config()
        assert (copied.runtime, copied.precision) == (encoder.runtime, "fp32")
        assert_array_equal(copied.encode(photographs), expected)
    assert repr(encoder) == f"OnnxEncoder({str(exported)!r}, stage='mid', dim={encoder.dim})"
    with pytest.raises(AttributeError, match="never changes"):
        encoder.batch_size = 3
    for wrong in ({"model": "RN50"}, {"model": "onnx:"}, {"path": "x"}, {"model": None}):
        with pytest.raises(InvalidInputError, match="not an OnnxEncoder's"):
            OnnxEncoder.from_config({**encoder.config(), **wrong})


def test_a_forked_process_encodes(exported, photographs, opened):
    """With several threads, which stay behind at a fork, also of a thread in the middle of a pass."""
    encoder = opened(exported, precision="fp32", threads=2)
    expected = encoder.encode(photographs)

    def encode():
        assert np.abs(encoder.encode(photographs) - expected).max() <= 1e-5 * np.abs(expected).max()

    assert ended_well(fork(encode))
    encode()
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(lambda: [encode() for _ in iter(done.is_set, True)])
        try:
            for _ in range(FORKS):
                assert ended_well(fork(encode))
        finally:
            done.set()
        passing.result()


@pytest.mark.skipif(sys.platform != "linux", reason="stacks for signals are read as Linux has them")
def test_a_thread_keeps_its_stack_for_signals(exported, photographs, opened):
    """Whichever thread loads an encoder, or is the last to hold it, and in whatever order they go."""

    def stack():
        found = SignalStack.current()
        return found.address, found.flags, found.size

    before = stack()
    held = [opened(exported, precision="fp32", threads=1) for _ in range(2)]
    for each in held:
        each.encode(photographs[:1])
    assert stack() == before
    with ThreadPoolExecutor(1) as pool:
        pool.submit(held.pop, 0).result()
        assert stack() == before
        pool.submit(held.clear).result()
    assert stack() == before


def test_threads_share_an_encoder(exported, photographs, opened):
    encoder = opened(exported, precision="fp32", threads=2)
    expected = encoder.encode(photographs)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(encoder.encode, [photographs] * 8):
            assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_file_that_was_replaced_is_not_taken_for_the_same(tiny_model, exported, photographs, tmp_path):
    """A fork has the file opened again."""
    path = tmp_path / "encoder.onnx"
    shutil.copy(exported, path)
    encoder = OnnxEncoder(path)
    described_anew(exported, path, lambda found: found.update(library_version="another"))

    def encode():
        with pytest.raises(WeightsUnavailableError, match=r"another file.*Open it anew: OnnxEncoder\(path\)"):
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


def test_what_a_runtime_refuses_is_told_with_its_version(exported, tmp_path, opened):
    model = onnx.load_model(exported)
    model.graph.node[-1].op_type = "Later"
    {entry.key: entry for entry in model.metadata_props}[DIGEST_KEY].value = UNSEALED
    path = tmp_path / "later.onnx"
    path.write_bytes(seal(model.SerializeToString()))
    with pytest.raises(WeightsUnavailableError) as caught:
        opened(path)
    told = r"(ONNX Runtime 1|OpenVINO 20)\S+ cannot load the encoder .*Later.* upgrade it \(pip install -U o"
    assert re.match(told, str(caught.value))


def test_a_file_says_nothing_of_who_made_it(exported):
    content = exported.read_bytes()
    assert str(clipretrieval.__path__[0]).encode() not in content
    assert b"forward" not in content


def test_8_bits_have_a_fingerprint_of_their_own(encoder, class_folder, tmp_path, bytes_are_multiplied):
    found = OnnxEncoder(encoder.export(tmp_path / "int8.onnx", int8=class_folder / "train"))
    assert (found.plan.precision, found.dim) == ("int8", encoder.dim)
    own = found.fingerprint.pop("quantization")
    assert own.startswith("int8, sha256:")
    assert {**encoder.fingerprint, "quantization": own} == found.fingerprint
    classifier = RetrievalClassifier(encoder, "faiss").fit(class_folder / "train")
    with pytest.raises(FingerprintMismatchError, match="quantization: stored nothing, given 'int8"):
        RetrievalClassifier.from_store(classifier.store_, found)
    with pytest.raises(InvalidInputError, match="no images to calibrate on"):
        encoder.export(tmp_path / "none.onnx", int8=[])


def test_what_8_bits_are_calibrated_on_is_in_the_fingerprint(
    tiny_model, class_folder, tmp_path, bytes_are_multiplied
):
    stem = StagedEncoder(tiny_model, stage="stem", precision="fp32", device="cpu")
    one, again, other = (
        OnnxEncoder(stem.export(tmp_path / f"{number}.onnx", int8=class_folder / part)).fingerprint
        for number, part in enumerate(("train", "train", "test/flower"))
    )
    assert one == again
    assert one != other


def test_8_bits_are_near(quantized, class_folder, bytes_are_multiplied, opened):
    """To the vectors of float32, on images that it was not calibrated on too, in each part and each row."""
    encoder, path = quantized
    images = sorted((class_folder / "test").rglob("*.*"))
    expected, found = encoder.encode(images), opened(path)
    vectors, start = found.encode(images), 0
    for part in encoder._output.parts:
        place = slice(start, start := start + part.dim)
        assert 0 < largest_change(vectors[:, place], expected[:, place]) < 0.1, part
    assert largest_change(found.encode(images[0]), vectors[:1]) < 0.01
    with pytest.raises(InvalidInputError, match="computes in 8 bits, and precision='fp32' is for one"):
        opened(path, precision="fp32")


@pytest.mark.parametrize("limit", ["", "AVX2"])
def test_8_bits_need_their_instructions(quantized, monkeypatch, limit):
    """OpenVINO heeds oneDNN's limit too."""
    for module in ("onnx_runtime_session", "openvino_session"):
        monkeypatch.setattr(
            f"clipretrieval.encoding.onnx.runtimes.{module}.multiplies_bytes", lambda: bool(limit)
        )
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    for runtime in ["openvino"] if limit else RUNTIMES:
        with pytest.raises(InvalidInputError, match="this CPU has no instructions for them"):
            OnnxEncoder(quantized[1], runtime=runtime)


def test_bf16_is_for_cpus_that_have_it(exported, photographs, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    limited = OnnxEncoder(exported, runtime="openvino")
    assert (limited.precision, limited.plan.precision) == ("auto", "fp32")
    with pytest.raises(InvalidInputError, match="precision='bf16' is not to be had: this CPU has no inst"):
        OnnxEncoder(exported, runtime="openvino", precision="bf16")
    with pytest.raises(InvalidInputError, match="ONNX Runtime computes in fp32 alone; use runtime="):
        OnnxEncoder(exported, precision="bf16")
    expected = limited.encode(photographs)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    if "bf16" not in RUNTIMES["openvino"].precisions():
        pytest.skip("this CPU has no bf16")
    found = OnnxEncoder(exported, runtime="openvino")
    assert found.plan.precision == "bf16"
    assert found.fingerprint == limited.fingerprint
    assert 0 < largest_change(found.encode(photographs), expected) < 0.05


def test_only_what_there_is_can_be_chosen(exported):
    with pytest.raises(InvalidInputError, match="must be one of 'onnxruntime', 'openvino'; got 'tvm'"):
        OnnxEncoder(exported, runtime="tvm")
    with pytest.raises(InvalidInputError, match="must be one of 'auto', 'fp32', 'bf16'; got 'fp16'"):
        OnnxEncoder(exported, precision="fp16")


def test_openvino_tells_nobody_of_its_import(exported, tmp_path):
    """Its own telemetry would, in a thread, and keep a number of the user's in the home folder."""
    program = (
        "import sys\n"
        "told = []\n"
        "sys.addaudithook(lambda event, _: told.append(event) if event in (\n"
        "    'socket.connect', 'socket.getaddrinfo', 'urllib.Request', 'os.fork') else None)\n"
        "import numpy as np, clipretrieval\n"
        f"encoder = clipretrieval.OnnxEncoder({str(exported)!r}, runtime='openvino')\n"
        "assert encoder.encode(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, encoder.dim)\n"
        "import openvino\n"
        "assert 'openvino_telemetry' not in sys.modules and openvino.convert_model\n"
        "import atexit; atexit._run_exitfuncs()\n"
        "print(told)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


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


TIMM = "StagedEncoder('timm:resnet18', None)"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_of_torch_is_needed_and_what_needs_it_is_named(encoder, exported, class_folder, runtime):
    """Nor for the names that are not used."""
    folder = str(class_folder / "train")
    answers, *told = told_without_torch(
        "import clipretrieval, numpy as np\n"
        "for name in clipretrieval.__all__:\n    getattr(clipretrieval, name)\n"
        "from clipretrieval import MissingDependencyError, StagedEncoder\n"
        f"encoder = clipretrieval.OnnxEncoder({str(exported)!r}, runtime={runtime!r}, precision='fp32')\n"
        f"made = clipretrieval.RetrievalClassifier(encoder, 'faiss', head='discriminant').fit({folder!r})\n"
        f"print(*made.predict({str(class_folder / 'test')!r}))\n"
        "pixel = StagedEncoder(stage='pixel')\n"
        f"for use in {[*USES, TIMM]!r}:\n"
        "    try:\n        exec(use)\n    except MissingDependencyError as error:\n        print(error)"
    ).splitlines()
    made = RetrievalClassifier(encoder, "faiss", head="discriminant").fit(folder)
    assert answers.split() == made.predict(class_folder / "test").tolist()
    timm = told.pop()
    assert timm.startswith("timm:resnet18 needs timm, which is not installed; run: pip install torch ")
    assert len(told) == len(USES)
    for line in told:
        assert "needs torch, which is not installed; run: pip install torch" in line
        assert "OnnxEncoder(path)" in line
