"""The patches' embedding in bf16, which rounds no pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_towers import TOWERS
from torch import nn

from clipretrieval import StagedEncoder
from clipretrieval.encoding.engine.byte_patches import CENTER, BytePatches
from clipretrieval.encoding.engine.onednn import can_pack
from clipretrieval.encoding.engine.patch_product import PatchProduct

MEAN, STD = (0.48, 0.46, 0.41), (0.25, 0.5, 0.125)


@pytest.fixture
def packed():
    if not can_pack(torch.bfloat16):
        pytest.skip("this torch lays out no weights")


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("bias", [True, False])
def test_only_the_result_is_rounded_where_weights_are_bf16_numbers(bias):
    """Every byte is exact: beside a convolution of normalized pixels in float64."""
    convolution = nn.Conv2d(3, 8, 16, 16, bias=bias)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Divided by 255 and the standard deviation, a power of two, these are sixteenths.
        convolution.weight.copy_(
            torch.randint(-15, 16, convolution.weight.shape, generator=generator) * 255 / 16
        )
    images = torch.randint(0, 256, (2, 48, 32, 3), generator=generator, dtype=torch.uint8)
    images[0, :16] = 255
    images[0, 16:32] = 0
    pixels = images.permute(0, 3, 1, 2)
    embedding = BytePatches(convolution, MEAN, STD, 12)
    with torch.inference_mode():
        found = embedding(pixels.float() - CENTER).double()
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
        expected = convolution.double()((pixels.double() / 255 - mean) / std)
    added = embedding.bias.detach().double().view(-1, 1, 1)
    assert ((found - expected).abs() <= (expected - added).abs() * 2**-8 + expected.abs() * 1e-6).all()
    assert found.shape == (2, 8, 3, 2)


def _unlike_sides():
    """Return a convolution, and bytes of 20 × 17 pixels, of which patches of 6 leave 2 and 5 over."""
    generator = torch.Generator().manual_seed(1)
    convolution = nn.Conv2d(3, 8, 6, 6)
    with torch.no_grad():
        for parameter in convolution.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return convolution, torch.randint(0, 256, (2, 3, 20, 17), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-6)])
def test_what_is_no_whole_patch_is_left_out_as_by_a_convolution(dtype, tolerance):
    convolution, images = _unlike_sides()
    pixels = images / 255 - 0.5
    with torch.inference_mode():
        found = PatchProduct(convolution.to(dtype))(pixels.to(dtype)).float()
        expected = convolution.float()(pixels)
    assert found.shape == expected.shape == (2, 8, 3, 2)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.usefixtures("packed")
def test_bytes_that_are_no_whole_patch_are_left_out_too():
    convolution, images = _unlike_sides()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.inference_mode():
        found = BytePatches(convolution, MEAN, STD, 6)(images.float() - CENTER)
        expected = convolution((images / 255 - mean) / std)
    assert found.shape == expected.shape == (2, 8, 3, 2)
    assert (found - expected).abs().max() < 2**-6 * expected.abs().max()


@pytest.mark.usefixtures("packed")
@pytest.mark.parametrize("name", ["open_clip ViT", "open_clip SigLIP", "timm DINOv2", "timm EVA02"])
def test_transformers_take_bytes_in_bf16_alone(name, photographs):
    """Vectors lie nearer to those in float32 than with pixels that are rounded."""
    module = TOWERS[name].make()
    exact, rounded = (
        StagedEncoder(module, stage="block.0", precision=precision, device="cpu")
        for precision in ("fp32", "bf16")
    )
    expected, found = exact.encode(photographs), rounded.encode(photographs)
    assert any(isinstance(part, PatchProduct) for part in _parts(exact))
    if rounded.plan.kernels == "onednn":
        assert any(isinstance(part, BytePatches) for part in _parts(rounded))
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def _parts(encoder):
    """List what an encoder's engine runs: the embedding belongs to the tower, not to a block."""
    first = encoder._tower.built.units[0].run.__closure__
    towers = [cell.cell_contents for cell in first if isinstance(cell.cell_contents, nn.Module)]
    return [part for tower in towers for part in tower.modules()]
