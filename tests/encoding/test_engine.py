"""The inference plan: faster, and the same answers."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from tiny_models import counted_convolutions, enliven
from torch.utils.flop_counter import FlopCounterMode
from warm_process import WarmProcess, run_warm

from clipretrieval import ClipRetrievalWarning, InvalidInputError, StagedEncoder
from clipretrieval.encoding.engine import winograd
from clipretrieval.encoding.engine.convolutions import round_taps
from clipretrieval.encoding.engine.inference_plan import InferencePlan
from clipretrieval.encoding.engine.units import QueryPool

DEEP = ("stem", "layer2", "mid", "late", "final")
BENCHMARK = (Path(__file__).parents[2] / "benchmarks" / "encode.py", "--model")


def cosine(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_bf16_keeps_the_direction_of_every_vector(rn50_file, photographs):
    """In bf16 each vector of RN50 has a cosine of at least 0.99999 to its fp32 one, at every stage."""
    exact = StagedEncoder("RN50", rn50_file, precision="fp32").encode_stages(photographs, DEEP)
    rounded = StagedEncoder("RN50", rn50_file, precision="bf16", batch_size=4).encode_stages(
        photographs, DEEP
    )
    for stage in DEEP:
        assert rounded[stage].dtype == np.float32
        assert cosine(exact[stage], rounded[stage]).min() > 0.99999, stage


def test_the_plan_is_chosen_for_the_machine(tiny_model):
    """On a CPU with bf16 instructions the plan is bf16, else fp32; it fits the cache and uses every core."""
    plan = StagedEncoder("RN50", None, device="cpu").plan
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert plan.precision == ("bf16" if fast else "fp32")
    assert plan.inner_batch == 4
    assert plan.streams * plan.threads <= torch.get_num_threads()
    assert plan.to_dict()["device"] == "cpu"
    assert plan.precision in str(plan)
    assert StagedEncoder(tiny_model, batch_size=5).plan.inner_batch == 5
    assert StagedEncoder("RN50", None, precision="fp32").plan.precision == "fp32"
    with pytest.raises(InvalidInputError, match="bf16"):
        StagedEncoder(tiny_model, precision="fp16", device="cpu")
    numbered = StagedEncoder(tiny_model, device="cpu:0", batch_size=np.int64(2)).plan
    assert numbered == StagedEncoder(tiny_model, device="cpu", batch_size=2).plan
    assert json.loads(json.dumps(numbered.to_dict()))["inner_batch"] == 2


@pytest.mark.parametrize("limit", ["AVX2", "avx512_core", "AVX512_CORE_VNNI"])
def test_a_limit_on_onednn_s_instructions_is_one_on_the_plan(tiny_model, monkeypatch, limit):
    """Without its instructions oneDNN computes bf16 many times as slowly as fp32."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert StagedEncoder(tiny_model, device="cpu").plan.precision == "fp32"
    assert not winograd.is_available(torch.bfloat16)


def test_slow_bf16_is_warned_of(tiny_model, monkeypatch):
    """Asking for bf16 on a CPU without instructions for it is done, with a warning."""
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert StagedEncoder(tiny_model).plan.precision == "fp32"
    with pytest.warns(ClipRetrievalWarning, match="no bf16 instructions") as caught:
        StagedEncoder(tiny_model, precision="bf16")
    assert caught[0].filename == __file__


def test_plain_and_fused_kernels_agree(tiny_model, photographs, monkeypatch):
    """Without oneDNN's fused convolutions the plain ones give the same vectors."""
    fused = StagedEncoder(tiny_model, precision="fp32").encode_stages(photographs, DEEP)
    monkeypatch.setattr("clipretrieval.encoding.engine.onednn.can_fuse", lambda _: False)
    encoder = StagedEncoder(tiny_model, precision="fp32")
    assert encoder.plan.kernels == "torch"
    plain = encoder.encode_stages(photographs, DEEP)
    for stage in DEEP:
        np.testing.assert_allclose(plain[stage], fused[stage], rtol=1e-4, atol=1e-5)


def test_operators_that_have_gone_are_done_without(tiny_model, photographs, monkeypatch):
    """Where torch's private operators are missing or changed, the plan falls back to the public ones."""

    def gone(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr("clipretrieval.encoding.engine.onednn.reorder_weight", gone)
    assert StagedEncoder(tiny_model).plan.kernels == "torch"


def test_attention_pool_for_one_query_equals_the_whole(photographs):
    """The pool that computes one query equals open_clip's, which computes all, at far fewer products."""
    torch.manual_seed(0)
    pool = open_clip.modified_resnet.AttentionPool2d(7, 512, 8, 96).eval().requires_grad_(False)
    plan = InferencePlan("cpu", "fp32", 4, 1, 1, "torch", compiled=False)
    tensors = {f"attnpool.{name}": value for name, value in pool.state_dict().items()}
    ours = QueryPool(tensors, 8, pool.positional_embedding, plan)
    x = torch.randn(3, 512, 7, 7)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), pool(x), rtol=1e-4, atol=1e-5)
        counts = []
        for module in (ours, pool):
            with FlopCounterMode(display=False) as counter:
                module(x)
            counts.append(counter.get_total_flops())
    assert counts[0] < counts[1] / 10


def test_autocast_of_the_caller_changes_nothing(tiny_model, photographs):
    """Vectors are the same inside somebody's autocast block and under another default type."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    expected = encoder.encode_stages(photographs, DEEP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = StagedEncoder(tiny_model, precision="fp32").encode_stages(photographs, DEEP)
    torch.set_default_dtype(torch.float64)
    try:
        doubled = StagedEncoder(tiny_model, precision="fp32").encode_stages(photographs, DEEP)
    finally:
        torch.set_default_dtype(torch.float32)
    for stage in DEEP:
        np.testing.assert_array_equal(found[stage], expected[stage])
        np.testing.assert_array_equal(doubled[stage], expected[stage])


def test_threads_of_torch_stay_as_they_were(tiny_model, photographs):
    """Working side by side leaves torch's threads alone, for the caller and for threads begun later."""

    def seen_by_a_new_thread():
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before, default = torch.get_num_threads(), seen_by_a_new_thread()
    encoder = StagedEncoder(tiny_model, batch_size=1)
    try:
        torch.set_num_threads(5)
        with ThreadPoolExecutor(1) as pool:
            first = encoder.stream(photographs)
            next(first)
            second = encoder.stream(photographs)
            pool.submit(next, second).result()
            assert seen_by_a_new_thread() == 5
            torch.set_num_threads(7)
            assert len(list(first)) == len(list(second)) == len(photographs) - 1
        assert torch.get_num_threads() == seen_by_a_new_thread() == 7
    finally:
        torch.set_num_threads(default)
        torch.set_num_threads(before)


def test_only_what_is_needed_is_converted(rn50_file, photographs):
    """An encoder stopped at the stem builds no other unit, and a deeper question builds the rest."""
    encoder = StagedEncoder("RN50", rn50_file, "stem")
    encoder.encode(photographs[:1])
    assert len(encoder._tower.built.units) == 1
    encoder.encode_stages(photographs[:1], ["mid"])
    assert len(encoder._tower.built.units) == 14


def test_compiling_gives_the_same_vectors(tiny_model, photographs):
    """compile=True changes no answer, for whole batches, for the rest of them, and for one picture."""
    shallow = {"stage": "layer2.0", "precision": "fp32", "batch_size": 4}  # every kind of unit
    plain = StagedEncoder(tiny_model, **shallow)
    compiled = StagedEncoder(tiny_model, **shallow, compile=True)
    assert compiled.plan.compiled
    assert compiled.fingerprint == plain.fingerprint
    for count in (4, 7, 1):
        np.testing.assert_allclose(
            compiled.encode(photographs[:count]), plain.encode(photographs[:count]), rtol=1e-4, atol=1e-5
        )


def test_compiling_falls_back_with_a_warning(tiny_model, photographs, monkeypatch):
    """Where inductor does not work, the encoder says so once and runs as it is."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(torch, "compile", broken)
    encoder = StagedEncoder(tiny_model, precision="fp32", compile=True)
    assert encoder.plan.compiled
    with pytest.warns(ClipRetrievalWarning, match="no compiler found"):
        found = encoder.encode(photographs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode_stages(photographs, ("stem", "mid"))
        encoder.encode_stages(photographs, ("final",))  # a deeper engine, for which nothing is compiled again
    assert not encoder.plan.compiled
    assert "torch kernels" in str(encoder.plan)
    assert encoder.config()["compile"]  # on another machine it may work
    np.testing.assert_allclose(
        found, StagedEncoder(tiny_model, precision="fp32").encode(photographs), rtol=1e-4, atol=1e-5
    )


def test_going_on_equals_a_whole_pass(tiny_model, photographs):
    """Going on from ``mid`` for some pictures gives what a whole pass gives, and runs nothing again."""
    encoder = StagedEncoder(tiny_model, precision="fp32", batch_size=3)
    whole = encoder.encode_stages(photographs, ("pixel", "mid", "late", "final"))
    begun = encoder.begin(photographs, "mid")
    np.testing.assert_allclose(begun.vectors, whole["mid"], rtol=1e-5, atol=1e-6)
    with counted_convolutions() as ran:
        late = begun.advance("late", [6, 1, 4])
    # One block with its shortcut, in one inner batch of three: nothing of layer1 to layer3.
    assert len(ran) == 4
    assert late.rows.tolist() == [6, 1, 4]
    assert late.ids == [begun.ids[row] for row in (6, 1, 4)]
    np.testing.assert_allclose(late.vectors, whole["late"][[6, 1, 4]], rtol=1e-5, atol=1e-5)
    with counted_convolutions() as ran:
        final = late.advance("final", np.array([False, True, True]))
    assert not ran
    assert final.rows.tolist() == [1, 4]
    np.testing.assert_allclose(final.vectors, whole["final"][[1, 4]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["pixel", "stem", "layer2.0", "layer3.0", "mid"])
def test_a_pass_can_go_on_twice(tiny_model, photographs, stage):
    """A pass is not used up: from any stage it goes on again, for all pictures, with the same result."""
    encoder = StagedEncoder(tiny_model, precision="fp32")
    expected = encoder.encode_stages(photographs, (stage, "late"))
    begun = encoder.begin(photographs, stage)
    np.testing.assert_allclose(begun.vectors, expected[stage], rtol=1e-5, atol=1e-6)
    first, second = begun.advance("late"), begun.advance("late")
    np.testing.assert_array_equal(first.vectors, second.vectors)
    np.testing.assert_allclose(first.vectors, expected["late"], rtol=1e-5, atol=1e-5)


def test_a_pass_refuses_what_it_cannot_do(tiny_model, photographs):
    """Going back, rows that are not there, and beginning with nothing are errors."""
    encoder = StagedEncoder(tiny_model)
    begun = encoder.begin(photographs[:3], "mid")
    for stage, rows, message in (
        ("stem", None, "cannot go back"),
        ("pixel", None, "cannot go back"),
        ("nowhere", None, "unknown stage"),
        ("late", [3], r"\[0, 3\)"),
        ("late", [-1], r"\[0, 3\)"),
        ("late", [], "at least one"),
        ("late", [0.5], "row number"),
        ("late", [True, False], "mask of shape"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            begun.advance(stage, rows)
    with pytest.raises(InvalidInputError, match="at least one"):
        encoder.begin([])


@pytest.mark.parametrize("pooling", ["mean", "max", "gem", "tokens", "grid"])
def test_poolings_equal_their_definitions(tiny_model, photographs, pooling):
    """Each pooling of a grid and of the tokens equals a plain computation."""
    encoder = StagedEncoder(tiny_model, precision="fp32", pooling=pooling)
    begun = encoder.begin(photographs, "layer4")
    grid = begun._activations.float().numpy().astype(np.float64)
    flat = grid.reshape(*grid.shape[:2], -1)
    positions = encoder._tower.built.positions.numpy().astype(np.float64).T
    tokens = np.concatenate([flat.mean(2, keepdims=True), flat], 2) + positions
    half = grid.shape[-1] // 2
    cut = [(slice(i, i + half), slice(j, j + half)) for i in (0, half) for j in (0, half)]

    def quarters(square):
        return np.stack([square[:, :, a, b].mean((2, 3)) for a, b in cut], 2).reshape(len(square), -1)

    ways = {
        "mean": lambda x, own: x.mean(2),
        "max": lambda x, own: x.max(2),
        "gem": lambda x, own: (np.maximum(x, 1e-6) ** 3).mean(2) ** (1 / 3),
        "tokens": lambda x, own: own.mean(2),
        "grid": lambda x, own: quarters(own.reshape(grid.shape)),
    }
    for stage, expected in (
        ("layer4", ways[pooling](flat, flat)),
        ("late", ways[pooling](tokens, tokens[:, :, 1:])),
    ):
        found = encoder.encode_stages(photographs, [stage])[stage]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert encoder.dim == (1024 if pooling == "grid" else 256)
    prints = [StagedEncoder(tiny_model, pooling=other).fingerprint for other in ("mean", "max", pooling)]
    assert (prints[2] in prints[:2]) == (pooling in ("mean", "max"))


def test_pooling_does_not_touch_stages_without_a_grid(tiny_model):
    """The final embedding and the pixels are the same under every pooling, and so are their fingerprints."""
    for stage in ("pixel", "final"):
        assert (
            StagedEncoder(tiny_model, stage=stage, pooling="grid").fingerprint
            == StagedEncoder(tiny_model, stage=stage).fingerprint
        )


@pytest.mark.parametrize("tower", [False, True])
def test_a_model_that_was_passed_in_stays_as_it_is(tiny_model, photographs, tower):
    """A model of the user's own, whole or its image tower, is copied: no tensor and no mode of it changes."""
    config = {"image_size": 64, "layers": [1, 2, 2, 1], "width": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = enliven(open_clip.CLIP(embed_dim=24, vision_cfg=config, text_cfg=text)).train()
    before = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    encoder = StagedEncoder(clip.visual if tower else clip, stage="final", precision="fp32")
    found = encoder.encode(photographs)
    assert clip.visual.training
    assert all(torch.equal(before[name], tensor) for name, tensor in clip.state_dict().items())
    transform = open_clip.image_transform(64, is_train=False)
    with torch.inference_mode():
        expected = clip.eval().visual(torch.stack([transform(photo) for photo in photographs])).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert "CLIP" in repr(encoder) or "ModifiedResNet" in repr(encoder)
    with pytest.raises(
        InvalidInputError, match=r"Linear is no image tower(?s:.*)FunctionEncoder\(vectors, name="
    ):
        StagedEncoder(torch.nn.Linear(2, 2))


def test_an_encoder_never_changes(tiny_model):
    """Attributes that decide the vectors cannot be set once the encoder is made."""
    encoder = StagedEncoder(tiny_model)
    with pytest.raises(AttributeError, match="make a new one with another image_size"):
        encoder.image_size = 96


def test_the_benchmark_runs(tiny_model, tmp_path):
    """The encoder's benchmark finishes on a few pictures and writes its figures."""
    few = ("--rounds", "1", "--seconds", "0.01", "--images", "2", "--files", "2", "--products", "128")
    done = run_warm(
        [*BENCHMARK, tiny_model, *few, "--no-peers", "--no-compile", "--json", tmp_path / "b.json"],
        check=True,
    )
    assert "share of roofline" in done.stdout
    assert (tmp_path / "b.json").exists()


def test_the_benchmark_keeps_its_rounds_when_it_is_cut_short(tiny_model, tmp_path):
    """Ended by SIGTERM after a round, it prints the tables of what it has, and its file has the rounds."""
    found, endless = tmp_path / "b.json", ("--rounds", "1000000", "--seconds", "0.01", "--images", "1")
    cut = WarmProcess([*BENCHMARK, tiny_model, "--quick", *endless, "--no-peers", "--json", found])
    try:
        while len(rounds_in(found)) < 2 and cut.poll() is None:
            time.sleep(0.01)
        os.kill(cut.pid, signal.SIGTERM)
        out, errors = cut.communicate(60)
    finally:
        cut.kill()
    assert cut.poll() == 1, errors
    assert "cut short" in errors
    assert "| mid fp32 / open_clip, best batch |" in out
    assert len(rounds_in(found)) >= 2
    assert all(row["mid fp32"] > 0 for row in rounds_in(found))


def rounds_in(path):
    """Return the rounds that the benchmark has written to its file so far."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if "round" in row]


def test_rounded_kernels_keep_the_sums_of_their_taps():
    """In bf16, a 3×3 kernel sums up to what it did within one rounding; 1×1 ones are just rounded."""
    torch.manual_seed(0)
    weight = torch.randn(16, 8, 3, 3)
    rounded = round_taps(weight, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    step = 2.0**-8 * weight.abs().amax(dim=(2, 3))
    assert ((rounded.double() - weight.double()).sum(dim=(2, 3)).abs() <= step).all()
    plain = weight.to(torch.bfloat16)
    lost = (plain.double() - weight.double()).sum(dim=(2, 3)).square().mean()
    assert (rounded.double() - weight.double()).sum(dim=(2, 3)).square().mean() < lost / 4
    pointwise = torch.randn(16, 8, 1, 1)
    assert torch.equal(round_taps(pointwise, torch.bfloat16), pointwise.to(torch.bfloat16))
    assert round_taps(weight, torch.float32) is weight
