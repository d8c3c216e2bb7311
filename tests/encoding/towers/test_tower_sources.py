"""Where towers come from, how images are prepared for them, and what is refused."""

from __future__ import annotations

import json
import socket
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.transformer import QuickGELU
from tiny_towers import CONVNEXT, SIGLIP, TOWERS, VIT, clip_of, counted_modules, seeded, write_clip
from torch import nn
from warm_process import run_warm

from clipretrieval import (
    InvalidInputError,
    MissingDependencyError,
    RetrievalClassifier,
    StagedEncoder,
    WeightsUnavailableError,
    ZeroShotClassifier,
    compare,
)

HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A small vision transformer of CLIP's in open_clip's form."""
    return write_clip(tmp_path_factory.mktemp("models") / "vit", VIT)


def relative(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def embedded(module, transform, photographs):
    with torch.inference_mode():
        return module.eval()(torch.stack([transform(photo) for photo in photographs])).numpy()


@pytest.mark.parametrize("config", [VIT, SIGLIP, CONVNEXT], ids=["ViT", "SigLIP", "ConvNeXt"])
def test_a_folder_gives_its_own_tower_and_preparation(config, tmp_path, photographs):
    """Squashed as SigLIP's are, with its own mean, to what open_clip itself makes of the folder."""
    preprocess = {**HALF, "size": config["vision_cfg"]["image_size"], "resize_mode": "squash"}
    name = write_clip(tmp_path / "model", config, {**preprocess, "interpolation": "bicubic"})
    model, _, transform = open_clip.create_model_and_transforms(name)
    encoder = StagedEncoder(name, stage="final", precision="fp32")
    expected = embedded(model.visual, transform, photographs[:3])
    assert relative(encoder.encode(photographs[:3]), expected) < 1e-5
    assert encoder.fingerprint["preprocessing"]["resize_mode"] == "squash"


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"])
def test_timm_s_models_take_files_and_timm_s_preparation(name, tmp_path, photographs):
    """A checkpoint with its classifier, of as many classes as it has, prepared to the bit as timm does."""
    model = seeded(lambda: timm.create_model(name, num_classes=7))()
    path = tmp_path / "trained.pt"
    torch.save(model.state_dict(), path)
    encoder = StagedEncoder(f"timm:{name}", path, "final", precision="fp32")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    model.reset_classifier(0)
    assert relative(encoder.encode(photographs), embedded(model, transform, photographs)) < 1e-5
    again = StagedEncoder.from_config(encoder.config())
    assert again.fingerprint == encoder.fingerprint
    assert encoder.fingerprint["preprocessing"]["crop_pct"] == 0.95


def test_random_weights_are_those_of_the_library_s_own_seed(photographs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        expected = timm.create_model("test_vit").state_dict()
        torch.manual_seed(5)
        clip = open_clip.create_model("ViT-B-32", precision="fp32", pretrained_image=False).visual
    made = StagedEncoder("timm:test_vit", None, seed=5)._tower.weights().state_dict()
    assert all(torch.equal(made[name], expected[name]) for name in made)
    ours = StagedEncoder("ViT-B-32", None, seed=5)._tower.weights().state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in clip.state_dict().items())


def test_published_models_are_prepared_for_as_they_were_trained():
    """SigLIP's size, squash and mean, whatever its weights; timm's crop; CLIP's own where tags disagree."""
    siglip = StagedEncoder("ViT-B-16-SigLIP", None, stage="pixel").preprocessing
    assert (siglip["resize_mode"], siglip["mean"], siglip["size"]) == ("squash", (0.5, 0.5, 0.5), 224)
    dino = StagedEncoder("timm:vit_small_patch14_dinov2.lvd142m", None)
    assert (dino.image_size, dino.dim) == (518, 384)
    assert dino.preprocessing["crop_pct"] == 1.0
    resnet = StagedEncoder("timm:resnet50.a1_in1k", None).preprocessing
    assert (resnet["crop_pct"], resnet["interpolation"]) == (0.95, "bicubic")
    assert StagedEncoder("ViT-B-32", None, "pixel").preprocessing["resize_mode"] == "shortest"


@pytest.mark.parametrize("name", ["open_clip ViT", "timm DINOv3", "timm ViT"])
def test_positions_are_interpolated_as_the_library_does(name, photographs):
    side = 96
    module = TOWERS[name].make()
    encoder = StagedEncoder(module, stage="final", image_size=side, precision="fp32")
    if name == "open_clip ViT":
        config = {**VIT, "vision_cfg": {**VIT["vision_cfg"], "image_size": side}}
        sized = clip_of(config)
        state = {f"visual.{key}": value for key, value in module.state_dict().items()}
        open_clip.model.resize_pos_embed(state, sized)
        sized.load_state_dict(state, strict=False)
        own = sized.visual
    else:
        own = TOWERS[name].make()
        own.set_input_size((side, side))
    images = [photo.resize((side, side)) for photo in photographs[:2]]
    source = encoder._tower.source
    prepared = replace(source, preprocess_cfg={**source.preprocess_cfg, "size": side}).transform()
    with torch.inference_mode():
        expected = own.eval()(torch.stack([prepared(image) for image in images])).numpy()
    assert relative(encoder.encode(images), expected) < 1e-5
    assert relative(encoder.encode([np.array(image) for image in images]), expected) < 1e-5


def test_half_precision_copies_of_openai_s_weights_have_quick_gelu(vit, tmp_path):
    """The activation, which no tensor shows, decides a transformer's vectors, and is in the fingerprint."""
    clip = clip_of(VIT)
    norms = ("ln_", "class_embedding", "positional")
    for kind, expected in (("ordinary", nn.GELU), ("halves", QuickGELU)):
        half = kind == "halves"
        state = {
            key: value.half() if half and not any(norm in key for norm in norms) else value
            for key, value in clip.state_dict().items()
        }
        folder = tmp_path / kind
        write_clip(folder, VIT)
        (folder / "open_clip_model.safetensors").unlink()
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        encoder = StagedEncoder(f"local-dir:{folder}", precision="fp32")
        assert f"activation={expected.__name__}" in encoder.fingerprint["model"]
        encoder.encode([np.zeros((64, 64, 3), np.uint8)])
        with counted_modules() as counts:
            encoder.encode([np.zeros((64, 64, 3), np.uint8)])
        assert counts[expected.__name__] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "timm:test_vit", "stage": "layer2"}, r"unknown stage 'layer2'.*block: block\.0, block\.1"),
        ({"model": "timm:test_convnext", "stage": "block.1"}, r"block: stem, stages\.0\.0, stages\.0, "),
        (
            {"model": "timm:test_convnext", "pooling": "cls"},
            "there is none at the stage 'late'.*tokens, grid",
        ),
        ({"model": "timm:test_vit3", "pooling": "cls"}, "class token, and there is none at the stage 'late'"),
        ({"pooling": "cls"}, "class token, and there is none at the stage 'late'"),
        ({"model": "timm:test_vit", "pooling": "median"}, "cls"),
        ({"model": "timm:test_vit", "image_size": 100}, r"multiple of 16, at least 16; got 100 .*own is 160"),
        ({"model": "timm:test_convnext", "image_size": 100}, "multiple of 32"),
        ({"model": "ViT-B-32", "image_size": 100}, "multiple of 32, at least 32; got 100"),
        ({"model": "timm:test_vitt"}, "near it are timm:test_vit"),
        ({"model": "ViT-B-23"}, "near it are ViT-B-"),
        ({"model": "dinov2_vits14"}, "near it are timm:vit_.*dinov2"),
        (
            {"model": "hf-hub:timm/vit_small_patch14_dinov2.lvd142m"},
            r"pass 'timm:vit_small_patch14_dinov2\.lvd142m'",
        ),
        ({"model": "timm:resnet50.no_such_tag"}, r"no weights 'no_such_tag' of resnet50.*a1_in1k"),
        ({"model": "timm:resnet50.a1_in1k", "pretrained": "a2_in1k"}, "leave one of them out"),
        ({"model": "timm:resnet50", "pretrained": "/no/such/file"}, "no file is called so"),
        ({"model": "timm:"}, "unknown model"),
        ({"model": "timm:legacy_xception", "stage": "block99"}, r"block: block1, block2, block3, "),
        ({"model": "timm:cait_xxs24_224"}, r"cait_xxs24_224\S* cannot be stopped(?s:.*)FunctionEncoder\("),
        ({"model": "ViT-B-32", "pretrained": "no_such_tag"}, "its tags: openai, laion400m"),
        ({"model": nn.Linear(2, 2)}, r"Linear is no image tower(?s:.*)FunctionEncoder\(vectors, name="),
    ],
)
def test_what_a_tower_cannot_do_is_refused_at_once(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        StagedEncoder(**{"pretrained": None, **arguments})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ("test_vit2", "it lacks cls_token, norm.weight, norm.bias; it has reg_token, "),
        ("test_resnet", "it lacks cls_token, pos_embed, patch_embed.proj.weight and "),
    ],
)
def test_a_file_of_another_tower_is_named(other, told, tmp_path):
    torch.save(timm.create_model(other).state_dict(), tmp_path / "other.pt")
    encoder = StagedEncoder("timm:test_vit", tmp_path / "other.pt")
    with pytest.raises(
        WeightsUnavailableError, match=rf"other\.pt do not fit test_vit\S*: {told}.*model's name"
    ):
        encoder.fingerprint  # noqa: B018


@pytest.mark.parametrize("wrapped", [{}, {"epoch": 3, "weights": {"cls_token": torch.ones(1)}}])
def test_a_file_without_tensors_never_has_timm_fetch_its_own(wrapped, monkeypatch, tmp_path, photographs):
    """What was named is read, or told."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked the network"))
    torch.save(wrapped, tmp_path / "some.pt")
    with pytest.raises(WeightsUnavailableError, match=r"some\.pt holds no (tensors by name|state dict)"):
        StagedEncoder("timm:test_vit", tmp_path / "some.pt").encode(photographs[:1])
    model = seeded(lambda: timm.create_model("test_vit"))()
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    found = [StagedEncoder("timm:test_vit", tmp_path / each).fingerprint for each in ("model.pt", "plain.pt")]
    assert found[0] == found[1]


@pytest.mark.parametrize("model", ["timm:test_vit", "timm:vit_small_patch16_dinov3.lvd1689m", "ViT-B-32"])
def test_an_unreachable_hub_is_one_clear_error(model, monkeypatch, tmp_path, photographs):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(WeightsUnavailableError, match=r"could not be fetched: .*local-dir:.*pretrained=None"):
        StagedEncoder(model).encode(photographs[:1])


def test_a_cached_file_of_timm_s_is_used(monkeypatch, tmp_path, photographs):
    """What the hub's client has in its cache needs no network."""
    from safetensors.torch import save_file

    repo = tmp_path / "models--timm--test_vit.r160_in1k"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    model = timm.create_model("test_vit")
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = StagedEncoder("timm:test_vit.r160_in1k", stage="final", precision="fp32")
    own = StagedEncoder(timm.create_model("test_vit"), stage="final")
    assert found.fingerprint != own.fingerprint
    weights = found._tower.weights().state_dict()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in weights.items())


def test_a_folder_of_timm_s_tells_how_it_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "num_classes": 7}))
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(
        WeightsUnavailableError,
        match=r"StagedEncoder\('timm:test_vit', pretrained='\S+/pytorch_model\.bin'\)",
    ):
        StagedEncoder(f"local-dir:{tmp_path}")


def test_a_configuration_may_not_fetch_timm_s_weights(tmp_path, vit):
    """Neither by naming a place in the hub for a model, nor by asking for the weights of its own."""
    folder = tmp_path / "model"
    write_clip(folder, CONVNEXT)
    config = json.loads((folder / "open_clip_config.json").read_text())
    vision = config["model_cfg"]["vision_cfg"]
    vision["timm_model_pretrained"] = True
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    assert StagedEncoder(f"local-dir:{folder}").fingerprint["weights"].startswith("sha256:")
    vision["timm_model_name"] = "hf-hub:someone/else"
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsUnavailableError, match=r"timm_model_name in \S*open_clip_config.json must be"):
        StagedEncoder(f"local-dir:{folder}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 10**9),
        ("width", 0),
        ("head_width", 5),
        ("patch_size", 7),
        ("mlp_ratio", "x"),
        ("layers", "4"),
    ],
)
def test_a_transformer_s_configuration_is_checked(tmp_path, field, value):
    folder = tmp_path / "model"
    write_clip(folder, VIT)
    vision = {**VIT["vision_cfg"], field: value}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {**VIT, "vision_cfg": vision}}))
    with pytest.raises(WeightsUnavailableError, match=r"model_cfg\.vision_cfg\.\w+ in \S+ must be"):
        StagedEncoder(f"local-dir:{folder}")


def test_zero_shot_answers_come_from_a_transformer(vit, photographs):
    """From a CLIP whose image tower is a transformer, as open_clip gives them."""
    classifier = ZeroShotClassifier(StagedEncoder(vit, precision="fp32"), ["cat", "house"])
    model, _, transform = open_clip.create_model_and_transforms(vit)
    tokens = open_clip.SimpleTokenizer(context_length=77)(["a cat", "a house"])
    with torch.inference_mode():
        texts = nn.functional.normalize(model.eval().encode_text(tokens), dim=-1)
        images = torch.stack([transform(photo) for photo in photographs[:2]])
        found = nn.functional.normalize(model.encode_image(images), dim=-1) @ texts.T
        expected = (model.logit_scale.exp() * found).softmax(dim=1).numpy()
    np.testing.assert_allclose(classifier.predict_proba(photographs[:2]), expected, atol=1e-4)


def test_texts_of_custom_towers_and_of_none(tmp_path, photographs):
    """SigLIP's text tower is read; a tokenizer of the hub needs transformers; timm's models have no texts."""
    name = write_clip(tmp_path / "siglip", SIGLIP)
    model, _, _ = open_clip.create_model_and_transforms(name)
    tokens = open_clip.SimpleTokenizer(context_length=77)(["a cat"])
    with torch.inference_mode():
        expected = model.eval().encode_text(tokens).numpy()
    np.testing.assert_allclose(StagedEncoder(name).text.encode(["a cat"]), expected, atol=1e-5)
    named = {**SIGLIP, "text_cfg": {**SIGLIP["text_cfg"], "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}
    (tmp_path / "siglip" / "open_clip_config.json").write_text(json.dumps({"model_cfg": named}))
    with pytest.raises((MissingDependencyError, WeightsUnavailableError), match="tokenizer"):
        StagedEncoder(name).text.encode(["a cat"])
    with pytest.raises(InvalidInputError, match=r"test_vit\S* has no text tower.*ViT-B-32"):
        StagedEncoder("timm:test_vit", None).text.encode(["a cat"])


def test_an_export_of_another_tower_is_refused(tmp_path):
    with pytest.raises(
        InvalidInputError, match="only CLIP's ResNets are exported, and timm:test_vit is none"
    ):
        StagedEncoder("timm:test_vit", None).export(tmp_path / "vit.onnx")


def test_a_classifier_answers_alike_in_another_process(class_folder, tmp_path):
    """A model of timm's, kept by its name and its seed."""
    encoder = StagedEncoder("timm:test_vit", None, "mid", pooling="cls", precision="fp32", seed=2)
    classifier = RetrievalClassifier(encoder).fit(class_folder / "train")
    classifier.save(tmp_path / "kept")
    expected = classifier.predict(class_folder / "test").tolist()
    program = (
        "from clipretrieval import RetrievalClassifier\n"
        f"kept = RetrievalClassifier.load({str(tmp_path / 'kept')!r})\n"
        f"print(*kept.predict({str(class_folder / 'test')!r}))"
    )
    done = run_warm(["-c", program])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


def test_a_classifier_of_a_model_in_memory_takes_its_weights_from_a_file(class_folder, tmp_path):
    """The report says what it is, and whoever loads it passes an encoder with the same weights."""
    model = timm.create_model("test_vit")
    encoder = StagedEncoder(model, stage="mid", precision="fp32")
    classifier = RetrievalClassifier(encoder).fit(class_folder / "train")
    assert classifier.evaluate(class_folder / "test").setting["model"] == "VisionTransformer"
    classifier.save(tmp_path / "kept")
    with pytest.raises(InvalidInputError, match=r"a model built in memory \(StagedEncoder\); pass it again"):
        RetrievalClassifier.load(tmp_path / "kept")
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    read = StagedEncoder("timm:test_vit", tmp_path / "mine.pt", "mid", precision="fp32")
    loaded = RetrievalClassifier.load(tmp_path / "kept", read)
    expected = classifier.predict(class_folder / "test")
    assert loaded.predict(class_folder / "test").tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:only .* of the budget of")
def test_towers_are_compared_with_their_own_library(class_folder):
    """Times of timm's model as it comes stand beside the stages', and a cascade goes from block to block."""
    encoder = StagedEncoder("timm:test_vit", None, "mid", precision="fp32")
    report = compare(
        str(class_folder / "train"),
        str(class_folder / "test"),
        encoder=encoder,
        stages=("mid", "final"),
        cascades=[("block.1", "mid", "late")],
        budget=encoder.multiply_adds("mid"),
        timed_images=4,
        single_images=1,
    )
    assert len(report.rows) == 3
    assert report.open_clip is not None


def test_the_command_takes_a_model_of_timm_s(class_folder, command, tmp_path):
    options = ("--model", "timm:test_vit", "--pretrained", "none", "--stage", "mid", "--pooling", "cls")
    assert command("index", class_folder / "train", tmp_path / "kept", *options)[0] == 0
    status, said, _ = command("classify", tmp_path / "kept", class_folder / "test", "--json")
    assert status == 0
    assert said.count("temple") + said.count("flower") > 9
    status, said, told = command(
        "recommend",
        class_folder / "train",
        "--model",
        "timm:test_vit",
        "--pretrained",
        "none",
        "--heads",
        "votes",
    )
    assert status == 0, told
    assert "block.0" in said
    assert "late" in said
