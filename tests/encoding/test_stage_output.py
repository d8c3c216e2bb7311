"""Several stages and poolings in one vector, against the vectors of each alone."""

from __future__ import annotations

import json
import pickle
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_models import TINY, counted_convolutions, write_model
from torch.utils.flop_counter import FlopCounterMode

from clipretrieval import (
    FingerprintMismatchError,
    InvalidInputError,
    RetrievalClassifier,
    StagedEncoder,
    ZeroShotClassifier,
    compare,
)
from clipretrieval.encoding import Architecture, stage_table
from clipretrieval.encoding.stage_output import find_output
from clipretrieval.encoding.staged_encoder import stopped_at

# Each at a place of its own.
STAGES = ("pixel", "stem", "layer1", "layer2.0", "layer2", "mid", "layer4", "late", "final")
POOLINGS = ("mean", "max", "gem", "tokens", "grid")


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return StagedEncoder(tiny_model, precision="fp32")


@pytest.fixture(scope="module")
def alone(tiny_model, photographs):
    """The vectors of each stage under each pooling, by (stage, pooling)."""
    return {
        (stage, pooling): vectors
        for pooling in POOLINGS
        for stage, vectors in StagedEncoder(tiny_model, precision="fp32", pooling=pooling)
        .encode_stages(photographs, STAGES)
        .items()
    }


def parts_of(stages, poolings):
    """List the parts of a joined vector, by the rule in the documentation."""
    found = []
    for stage in stages:
        if stage in ("pixel", "final"):
            found.append((stage, "mean"))
            continue
        seen = []
        for pooling in poolings:
            same = "mean" if pooling == "tokens" and stage != "late" else pooling
            if same not in seen:
                seen.append(same)
                found.append((stage, same))
    return found


def scaled(parts):
    """Concatenate parts, each at the same length."""
    lengths = [np.linalg.norm(part.astype(np.float64), axis=1, keepdims=True) for part in parts]
    return np.hstack([part / length for part, length in zip(parts, lengths, strict=True)]) / len(parts) ** 0.5


@settings(max_examples=30, deadline=None)
@given(
    stages=st.lists(st.sampled_from(STAGES), min_size=1, max_size=4, unique=True),
    poolings=st.lists(st.sampled_from(POOLINGS), min_size=1, max_size=3, unique=True),
)
def test_parts_are_joined_in_their_order_at_one_length(encoder, alone, photographs, stages, poolings):
    """Any stages under any poolings are the parts alone, scaled; one part alone is left as it is."""
    parts = parts_of(stages, poolings)
    view = stopped_at(encoder, "+".join(stages), "+".join(poolings))
    found = view.encode(photographs)
    assert found.dtype == np.float32
    assert found.shape == (len(photographs), view.dim)
    if len(parts) == 1:
        np.testing.assert_allclose(found, alone[parts[0]], rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_allclose(found, scaled([alone[part] for part in parts]), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("kind", [tuple, list, "+".join])
def test_several_names_are_given_as_a_sequence_or_in_one_word(tiny_model, photographs, kind):
    """A tuple, a list and one word make the same encoder, which says the word."""
    made = StagedEncoder(tiny_model, stage=kind(["layer2", "mid"]), pooling=kind(["mean", "max", "grid"]))
    assert (made.stage, made.pooling, made.dim) == ("layer2+mid", "mean+max+grid", 6 * 64 + 6 * 128)
    assert "stage='layer2+mid', dim=1152" in repr(made)
    same = StagedEncoder(tiny_model, stage="layer2+mid", pooling="mean+max+grid")
    assert made.fingerprint == same.fingerprint
    assert made.config() == same.config()
    np.testing.assert_array_equal(made.encode(photographs[:2]), same.encode(photographs[:2]))


@pytest.mark.parametrize("stage", ["pixel", "mid", "late", "final"])
def test_a_single_name_is_what_it_always_was(tiny_model, photographs, stage):
    """One name, in a tuple or not, has plain vectors, names and a fingerprint that knows of no parts."""
    plain = StagedEncoder(tiny_model, stage=stage, pooling="max")
    in_tuples = StagedEncoder(tiny_model, stage=(stage,), pooling=("max",))
    assert (in_tuples.stage, in_tuples.pooling) == (stage, "max")
    assert in_tuples.config() == plain.config()
    assert in_tuples.fingerprint == plain.fingerprint
    keys = {"encoder", "stage", "dim", "preprocessing"}
    more = {"model", "weights", "pooling", "image_size"}
    assert set(plain.fingerprint) == (keys if stage == "pixel" else keys | more)
    np.testing.assert_array_equal(in_tuples.encode(photographs[:2]), plain.encode(photographs[:2]))


def test_poolings_that_are_the_same_at_a_stage_are_one_part(tiny_model, photographs):
    """Before the tokens the mean without the mean token is the mean, so there is one part, unscaled."""
    both = StagedEncoder(tiny_model, stage="mid", pooling=("mean", "tokens"))
    mean = StagedEncoder(tiny_model, stage="mid")
    assert both.dim == mean.dim
    assert both.fingerprint == mean.fingerprint
    np.testing.assert_array_equal(both.encode(photographs[:2]), mean.encode(photographs[:2]))
    assert StagedEncoder(tiny_model, stage="late", pooling=("mean", "tokens")).dim == 2 * 256
    final = StagedEncoder(tiny_model, stage="final", pooling=("max", "grid"))
    assert final.fingerprint == StagedEncoder(tiny_model, stage="final").fingerprint


def test_one_pass_serves_all_parts(tiny_model, photographs):
    """A joined stage, and plain ones beside it, run what the deepest runs, each unit once."""
    encoder = StagedEncoder(tiny_model, pooling=("mean", "max", "grid"))
    with counted_convolutions() as ran:
        encoder.encode_stages(photographs[:2], ["mid"])
    with counted_convolutions() as ran_joined:
        together = encoder.encode_stages(photographs[:2], ["mid", "pixel", "layer2+stem+mid", "pixel+layer1"])
    assert ran_joined == ran
    for name, vectors in together.items():
        np.testing.assert_array_equal(vectors, stopped_at(encoder, name).encode(photographs[:2]))
    whole = StagedEncoder(tiny_model, stage="late+layer1")
    with counted_convolutions() as ran_whole:
        whole.encode(photographs[:2])
    with counted_convolutions() as ran_late:
        stopped_at(whole, "late").encode(photographs[:2])
    assert ran_whole == ran_late


def test_batches_have_joined_stages_by_their_names(encoder, photographs):
    """A stream of several stages gives each under the name that it was asked for by."""
    asked = ("layer1+mid", "mid")
    batches = list(encoder.stream(photographs, stages=asked))
    assert [set(batch.vectors) for batch in batches] == [set(asked)] * len(batches)
    found = np.concatenate([batch.vectors["layer1+mid"] for batch in batches])
    np.testing.assert_array_equal(found, stopped_at(encoder, "layer1+mid").encode(photographs))


def test_an_image_of_zeros_has_a_part_of_zeros(tiny_model):
    """A part without a direction stays zero, and the others keep their share."""
    black = Image.new("RGB", (64, 64))
    found = StagedEncoder(tiny_model, stage="pixel+stem", precision="fp32").encode([black])[0]
    assert not found[:3072].any()
    assert np.linalg.norm(found[3072:]) == pytest.approx(0.5**0.5)


def test_fingerprints_differ_with_the_parts_and_their_order(tiny_model):
    """Every order and every selection has a fingerprint of its own."""
    made = [
        StagedEncoder(tiny_model, stage=stage, pooling=pooling)
        for stage in ("mid", "layer2", "layer2+mid", "mid+layer2", "pixel+mid", "layer4+late")
        for pooling in ("mean", "max", "mean+max", "max+mean", "gem", "mean+gem")
    ]
    for one, other in combinations([each.fingerprint for each in made], 2):
        assert one != other
    found = StagedEncoder(tiny_model, stage="pixel+mid", pooling="gem+max").fingerprint
    assert json.loads(json.dumps(found)) == found
    assert found["stage"] == "pixel+mid"
    assert found["pooling"] == "gem(p=3)+max"
    assert found["dim"] == 3072 + 2 * 128
    assert found["pixel_preprocessing"] == StagedEncoder(stage="pixel").fingerprint["preprocessing"]
    assert "pixel_preprocessing" not in stopped_at(made[0], "layer2+mid").fingerprint
    none_pooled = [stopped_at(each, "pixel+final").fingerprint for each in made[:2]]
    assert none_pooled[0] == none_pooled[1]


def test_all_weights_that_run_are_in_the_fingerprint(tiny_model, other_model):
    """They are those of the deepest part, with the positions wherever there are tokens."""
    encoder = StagedEncoder(tiny_model)

    def weights(stage):
        return encoder.fingerprint_of(stage)["weights"]

    assert weights("layer2+mid") == weights("mid+layer1") == weights("mid")
    assert weights("late+layer4") == weights("layer4+late") == weights("late") != weights("layer4")
    assert weights("final+late") == weights("final")
    assert encoder.fingerprint_of("layer1+mid") != StagedEncoder(other_model).fingerprint_of("layer1+mid")


def test_config_and_pickling_keep_the_parts(tiny_model, photographs):
    """An encoder is built again from JSON, and in another process."""
    made = StagedEncoder(tiny_model, stage=("layer2", "mid"), pooling=("grid", "max"), batch_size=3)
    config = json.loads(json.dumps(made.config()))
    assert (config["stage"], config["pooling"]) == ("layer2+mid", "grid+max")
    for copy in (StagedEncoder.from_config(config), pickle.loads(pickle.dumps(made))):
        assert copy.fingerprint == made.fingerprint
        np.testing.assert_array_equal(copy.encode(photographs[:3]), made.encode(photographs[:3]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stage": ()}, r"stage is empty; .*pixel, mid, late, final.*layer3\.0"),
        ({"stage": []}, "stage is empty"),
        ({"stage": ("mid", "mid")}, r"'mid' twice; .*pixel, mid, late, final"),
        ({"stage": "mid+late+mid"}, "'mid' twice"),
        ({"stage": ("mid", "layer3")}, r"'layer3' and 'mid', which are the same.*pixel, mid"),
        ({"stage": ("layer2", "layer2.1")}, r"'layer2\.1' and 'layer2', which are the same"),
        ({"stage": ("mid", "nowhere")}, r"unknown stage 'nowhere'.*pixel, mid, late, final"),
        ({"stage": "mid+"}, r"unknown stage ''.*pixel, mid, late, final"),
        ({"stage": "mid + late"}, r"unknown stage 'mid '"),
        ({"stage": ("mid", None)}, "unknown stage None"),
        ({"stage": ("layer2+mid", "late")}, r"unknown stage 'layer2\+mid'"),
        ({"stage": {"mid"}}, "unknown stage {'mid'}"),
        ({"pooling": ()}, "pooling is empty; .*mean, max, gem, tokens, grid"),
        ({"pooling": ("max", "max")}, "'max' twice; .*mean, max, gem, tokens, grid"),
        ({"pooling": "mean+median"}, "pooling must be one of 'mean', 'max'.*got 'median'"),
        ({"pooling": ("mean", 2)}, "got 2"),
        ({"pooling": None}, "got None"),
    ],
)
def test_what_cannot_be_joined_is_refused(tiny_model, arguments, message):
    """Nothing, the same twice, and what is unknown are errors that list what is known."""
    with pytest.raises(InvalidInputError, match=message):
        StagedEncoder(tiny_model, **arguments)


@pytest.mark.parametrize("pooling", ["mean", "max+grid"])
def test_a_pass_stops_at_joined_stages(tiny_model, photographs, pooling):
    """Going on to joined stages takes what was passed from there, and equals a whole pass."""
    encoder = StagedEncoder(tiny_model, precision="fp32", pooling=pooling, batch_size=3)
    names = ("pixel", "layer1", "layer1+layer2", "pixel+layer1+mid", "mid+late+final", "layer2+late")
    whole = encoder.encode_stages(photographs, names)
    rows = [5, 2, 7, 0]

    def check(found, stage, kept):
        assert found.stage == stage
        assert found.rows.tolist() == kept
        np.testing.assert_allclose(found.vectors, whole[stage][kept], rtol=1e-4, atol=1e-5)

    begun = encoder.begin(photographs, "pixel")
    first = begun.advance("layer1")
    check(first, "layer1", list(range(8)))
    second = first.advance("layer1+layer2", rows)
    check(second, "layer1+layer2", rows)
    third = second.advance("pixel+layer1+mid", [True, False, True, True])
    check(third, "pixel+layer1+mid", [5, 7, 0])
    with counted_convolutions() as ran:
        check(third.advance("layer2+late", [1]), "layer2+late", [7])
    assert len(ran) == 4  # layer4's one block with its shortcut
    check(third.advance("mid+late+final"), "mid+late+final", [5, 7, 0])
    # From activations that stand at one of the stages, and from the beginning.
    check(encoder.begin(photographs, "layer2").advance("layer2+late", rows), "layer2+late", rows)
    check(encoder.begin(photographs, "pixel+layer1+mid"), "pixel+layer1+mid", list(range(8)))
    own = stopped_at(encoder, "layer1+layer2").begin(photographs)
    check(own, "layer1+layer2", list(range(8)))


def test_a_pass_refuses_joined_stages_that_it_has_passed(tiny_model, photographs):
    """What lies behind and was not kept cannot be joined any more, and the pass can still go on."""
    begun = StagedEncoder(tiny_model).begin(photographs[:2], "mid")
    with pytest.raises(InvalidInputError, match=r"'layer1\+late' needs the vectors of 'layer1'"):
        begun.advance("layer1+late")
    with pytest.raises(InvalidInputError, match="needs the vectors of 'pixel'"):
        begun.advance("mid+pixel")
    with pytest.raises(InvalidInputError, match="cannot go back"):
        begun.advance("layer1+layer2")
    with pytest.raises(InvalidInputError, match="unknown stage"):
        begun.advance("mid+nowhere")
    assert begun.advance("mid+late").vectors.shape == (2, 128 + 256)


def test_a_classifier_on_joined_stages_is_kept(tiny_model, class_folder, tmp_path):
    """Saved and loaded it answers alike, and another order of the parts is refused."""
    made = RetrievalClassifier(
        StagedEncoder(tiny_model, stage=("layer1", "mid"), pooling=("mean", "max")), store="memory", k=3
    ).fit(class_folder / "train")
    expected = made.evaluate(class_folder / "test")
    assert expected.setting["stage"] == "layer1+mid"
    assert expected.setting["dim"] == 2 * 32 + 2 * 128
    made.save(tmp_path / "kept")
    loaded = RetrievalClassifier.load(tmp_path / "kept")
    assert (loaded.encoder.stage, loaded.encoder.pooling) == ("layer1+mid", "mean+max")
    found = loaded.evaluate(class_folder / "test")
    assert found.y_pred.tolist() == expected.y_pred.tolist()
    np.testing.assert_array_equal(found.distances, expected.distances)
    turned = StagedEncoder(tiny_model, stage=("mid", "layer1"), pooling=("mean", "max"))
    with pytest.raises(FingerprintMismatchError, match=r"stage: stored 'layer1\+mid', given 'mid\+layer1'"):
        RetrievalClassifier.load(tmp_path / "kept", turned)


def test_joined_stages_are_compared(tiny_model, class_folder):
    """A comparison has them beside plain ones, and CLIP's own answer is that of any other encoder."""
    encoder = StagedEncoder(tiny_model, stage="layer1+mid", pooling="mean+max", precision="fp32")
    names = ["flower", "temple"]
    report = compare(
        class_folder / "train",
        class_folder / "test",
        encoder=encoder,
        stages=("mid", "layer1+mid"),
        stores=("memory",),
        zero_shot=ZeroShotClassifier(encoder, names),
        timed_images=2,
        single_images=0,
        open_clip=False,
    )
    assert [row.name for row in report.rows] == ["zero-shot", "mid", "layer1+mid"]
    alone = RetrievalClassifier(encoder, "memory").fit(class_folder / "train").evaluate(class_folder / "test")
    assert report["layer1+mid"].report.y_pred.tolist() == alone.y_pred.tolist()
    plain = ZeroShotClassifier(StagedEncoder(tiny_model, precision="fp32"), names)
    assert report["zero-shot"].report.y_pred.tolist() == plain.predict(class_folder / "test").tolist()
    with pytest.raises(InvalidInputError, match="unknown stage 'nowhere'"):
        compare(class_folder / "train", class_folder / "test", encoder=encoder, stages=("mid+nowhere",))


def test_commands_take_joined_stages(command, tiny_model, class_folder, tmp_path):
    """Index, info, classify, evaluate and compare take them, and errors name the options."""
    kept, report = tmp_path / "kept", tmp_path / "report.json"
    asked = ("--model", tiny_model, "--pooling", "mean+max")
    status, _, err = command("index", class_folder / "train", kept, *asked, "--stage", "layer1+mid")
    assert status == 0, err
    assert "stage layer1+mid, pooling mean+max" in command("info", kept)[1]
    assert command("classify", kept, class_folder / "test")[0] == 0
    test = ("--test", class_folder / "test", "--json", report)
    assert command("evaluate", "--classifier", kept, *test)[0] == 0
    loaded = json.loads(report.read_text())
    assert (loaded["stage"], loaded["dim"]) == ("layer1+mid", 320)
    fitted = ("evaluate", "--train", class_folder / "train", *test, *asked)
    assert command(*fitted, "--stage", "layer1+mid")[0] == 0
    assert json.loads(report.read_text())["accuracy"] == loaded["accuracy"]
    status, out, err = command(
        *("compare", class_folder / "train", class_folder / "test", *asked),
        *("--stages", "layer1+mid,mid", "--no-open-clip", "--no-zero-shot", "--store", "memory"),
    )
    assert status == 0, err
    assert "layer1+mid" in out
    status, _, err = command(*fitted, "--stage", "mid+layer3")
    assert (status, "'layer3' and 'mid', which are the same" in err) == (2, True)


@pytest.mark.parametrize("model", ["RN50", "odd"])
def test_multiply_adds_are_those_that_run(model, monkeypatch, tmp_path):
    """The count equals the products that are counted while the encoder runs, at every stage."""
    monkeypatch.setattr("clipretrieval.encoding.engine.onednn.can_fuse", lambda _: False)
    if model == "odd":
        odd = {**TINY["vision_cfg"], "layers": [2, 1, 3, 2], "width": 20}
        model = write_model(tmp_path / "odd", {**TINY, "vision_cfg": odd})
    encoder = StagedEncoder(model, None, precision="fp32", image_size=64, device="cpu")
    squares = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    for stage in ("stem", "layer1.0", "layer1", "layer2.0", "mid", "late", "final"):
        depth = encoder.stages[stage].depth
        engine = encoder._tower.engine(depth)
        with FlopCounterMode(display=False) as counter:
            engine.advance(engine.normalize(squares), 0, depth)
        assert encoder.multiply_adds(stage) == pytest.approx(counter.get_total_flops() / 2e9, rel=1e-12)
    assert encoder.multiply_adds("layer1+mid+pixel") == encoder.multiply_adds("mid")
    assert encoder.multiply_adds() == encoder.multiply_adds("late")
    assert encoder.multiply_adds("pixel") == 0


def test_multiply_adds_of_rn50():
    """RN50 at its own size takes what is known of it."""
    rn50 = Architecture((3, 4, 6, 3), width=64, output_dim=1024, heads=32, image_size=224)
    stages = stage_table(rn50)
    costs = {name: rn50.multiply_adds(stages[name].depth) for name in ("layer1", "layer2", "mid", "final")}
    assert {name: round(cost, 2) for name, cost in costs.items()} == {
        "layer1": 1.03,
        "layer2": 2.40,
        "mid": 4.21,
        "final": 5.39,
    }
    assert rn50.multiply_adds(17, 448) == pytest.approx(4 * rn50.multiply_adds(17))


@pytest.mark.parametrize("factor", [1.0, 1e18, 1e30, 3e37])
def test_parts_of_any_size_are_joined(factor):
    """Lengths whose squares are beyond float32 scale a part as others do, and leave other images alone."""
    small = Architecture((1, 1, 1, 1), width=8, output_dim=8, heads=2, image_size=64)
    output = find_output(stage_table(small), ("layer1", "mid"), "mean")
    rng = np.random.default_rng(0)
    vectors = {part: rng.normal(size=(4, part.dim)).astype(np.float32) for part in output.parts}
    right = scaled(list(vectors.values()))
    first = output.parts[0]
    vectors[first][:2] *= np.float32(factor)
    np.testing.assert_allclose(output.join(vectors), right, rtol=1e-5, atol=1e-7)
