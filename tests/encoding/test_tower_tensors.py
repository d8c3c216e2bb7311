"""An image encoder's tensors by name: what open_clip's module has, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import load_file, save_file

from clipretrieval import StagedEncoder, WeightsUnavailableError
from clipretrieval.encoding.stages import Architecture
from clipretrieval.encoding.weights.tower_tensors import tensor_shapes


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(1, 3)] * 4),
    st.sampled_from((4, 8, 10)),
    st.integers(1, 40),
    st.sampled_from((32, 96)),
)
def test_names_and_shapes_are_those_of_open_clip(layers, width, output_dim, image_size):
    with torch.device("meta"):
        module = ModifiedResNet(list(layers), output_dim, heads=2, image_size=image_size, width=width)
    found = tensor_shapes(Architecture(layers, width, output_dim, 2, image_size))
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop("visual.layer2.0.bn1.bias"), r"lacks layer2\.0\.bn1\.bias"),
        (lambda tensors: tensors.update({"visual.extra": torch.zeros(2)}), "has extra beside"),
        (
            lambda tensors: tensors.update({"visual.layer9.0.bn1.num_batches_tracked": torch.tensor(1)}),
            "has layer9.* beside",
        ),
        (
            lambda tensors: tensors.update({"visual.conv1.weight": torch.zeros(2, 3, 3, 3)}),
            r"conv1\.weight has the shape \(2, 3, 3, 3\) in the place of",
        ),
        (
            lambda tensors: [tensors.pop(name) for name in list(tensors) if "layer4" in name],
            "lacks layer4.* and [0-9]+ more",
        ),
    ],
)
def test_other_tensors_are_refused_by_name(tiny_model, tmp_path, change, told):
    folder = Path(tiny_model.removeprefix("local-dir:"))
    tensors = load_file(next(folder.glob("*.safetensors")))
    change(tensors)
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    save_file(tensors, tmp_path / "open_clip_model.safetensors")
    encoder = StagedEncoder(f"local-dir:{tmp_path}")
    with pytest.raises(WeightsUnavailableError, match=f"do not fit ModifiedResNet.*{told}.*model's name"):
        encoder.encode([torch.zeros(3, 8, 8)])
