"""Winograd's convolutions: the same sums as the plain ones, by fewer products."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from clipretrieval import ClipRetrievalWarning, StagedEncoder
from clipretrieval.encoding.engine import winograd
from clipretrieval.encoding.engine.planning import _gains_by_winograd

needs_kernel = pytest.mark.skipif(
    not winograd.is_available(), reason="needs AVX512-BF16, and a C compiler at installation"
)


def drawn(shape, out, seed, exact=False):
    """Inputs (in bf16, channels last), weight and bias; `exact` ones lose nothing in bf16's eight bits."""
    generator = torch.Generator().manual_seed(seed)
    weight_shape = (out, shape[1], 3, 3)
    if exact:
        # Tiles' sums of four inputs stay under 2⁸, and weights that 4 divides have whole transforms.
        x = torch.randint(0, 16, shape, generator=generator).float()
        weight = 4.0 * torch.randint(-2, 3, weight_shape, generator=generator)
        bias = torch.randint(-99, 99, (out,), generator=generator).float()
    else:
        x = torch.randn(shape, generator=generator).relu()
        weight = torch.randn(weight_shape, generator=generator) / (9 * shape[1]) ** 0.5
        bias = torch.randn(out, generator=generator)
    x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return x, weight, bias


def plain(x, weight, bias, relu, pool):
    """The convolution by its definition, in float64."""
    y = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    y = y.relu() if relu else y
    return functional.avg_pool2d(y, 2) if pool else y


@needs_kernel
@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 3),
    height=st.integers(1, 17),
    width=st.integers(1, 17),
    channels=st.sampled_from([32, 64, 96, 160]),
    out=st.sampled_from([32, 64, 96, 192]),
    relu=st.booleans(),
    pool=st.booleans(),
    threads=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_sums_of_whole_numbers_are_exact(n, height, width, channels, out, relu, pool, threads, seed):
    """Where no number is rounded on the way, every output is the plain sum, for any sides and threads."""
    x, weight, bias = drawn((n, channels, height, width), out, seed, exact=True)
    pool = pool and min(height, width) > 1
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = winograd.convolve(x, winograd.pack_weight(weight), bias, relu, pool)
    finally:
        torch.set_num_threads(before)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, plain(x, weight, bias, relu, pool).to(torch.bfloat16))


@needs_kernel
@pytest.mark.parametrize("side", [7, 56])
@pytest.mark.parametrize("channels", [32, 256])
def test_rounding_costs_little_more_than_bf16_itself(side, channels):
    """Outputs are within 0.45 % of the exact ones; storing those in bf16 alone costs 0.17 %."""
    x, weight, bias = drawn((2, channels, side, side), 64, seed=side)
    bias = torch.zeros_like(bias)  # it is exact, and would hide the sums' error
    exact = plain(x, weight, bias, relu=True, pool=False)
    found = winograd.convolve(x, winograd.pack_weight(weight), bias, True, False)
    stored = (exact.to(torch.bfloat16) - exact).norm() / exact.norm()
    error = (found - exact).norm() / exact.norm()
    assert stored < error < 0.0045


@needs_kernel
def test_more_threads_change_no_bit():
    """One picture on many threads gives what it gives on one, and in a batch."""
    x, weight, bias = drawn((4, 64, 56, 56), 128, seed=0)
    packed = winograd.pack_weight(weight)
    whole = winograd.convolve(x, packed, bias, True, False)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 200):
            torch.set_num_threads(threads)
            for row in range(4):
                one = winograd.convolve(x[row : row + 1], packed, bias, True, False)
                assert torch.equal(one[0], whole[row])
    finally:
        torch.set_num_threads(before)


@needs_kernel
def test_no_pictures_and_no_numbers():
    """An empty batch gives an empty one, and a NaN spreads over its neighbours."""
    x, weight, bias = drawn((2, 32, 8, 8), 32, seed=0)
    packed = winograd.pack_weight(weight)
    assert winograd.convolve(x[:0], packed, bias, True, False).shape == (0, 32, 8, 8)
    x[0, 3, 4, 4] = torch.nan
    found = winograd.convolve(x, packed, bias, True, False)
    assert found[0, :, 3:6, 3:6].isnan().all()
    assert not found[1].isnan().any()


@needs_kernel
def test_any_layout_will_do():
    """Inputs that lie channels first are copied into the kernel's order."""
    x, weight, bias = drawn((2, 32, 8, 6), 32, seed=0)
    packed = winograd.pack_weight(weight)
    expected = winograd.convolve(x, packed, bias, False, False)
    assert torch.equal(winograd.convolve(x.contiguous(), packed, bias, False, False), expected)


@needs_kernel
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_calls_the_kernel(backend):
    """Under torch.compile the kernel is one operator of the graph, with the same outputs."""
    x, weight, bias = drawn((1, 32, 8, 8), 64, seed=0)
    packed = winograd.pack_weight(weight)
    compiled = torch.compile(winograd.convolve, fullgraph=True, backend=backend)
    for pool in (False, True):
        found = compiled(x, packed, bias, True, pool)
        assert torch.equal(found, winograd.convolve(x, packed, bias, True, pool))


@needs_kernel
@pytest.mark.parametrize("pool", [False, True])
def test_torch_counts_the_operations_of_the_plain_sum(pool):
    """To torch's counter it is as much work as the convolution that it stands for."""
    x, weight, bias = drawn((2, 32, 9, 8), 64, seed=0)
    packed = winograd.pack_weight(weight)
    with FlopCounterMode(display=False) as counter:
        winograd.convolve(x, packed, bias, True, pool)
    with FlopCounterMode(display=False) as expected:
        functional.conv2d(x.float(), weight, bias, padding=1)
    assert counter.get_total_flops() == expected.get_total_flops() > 0


def test_the_package_may_be_imported_anew():
    """A notebook that drops the package's modules and imports them again gets a working operator."""
    program = """
import sys
import torch
from clipretrieval.encoding.engine import winograd
for name in [name for name in sys.modules if name.startswith("clipretrieval")]:
    del sys.modules[name]
from clipretrieval.encoding.engine import winograd
try:
    winograd.convolve(torch.zeros(1, 32, 4, 4), torch.zeros(1), torch.zeros(32), True, False)
except ValueError as error:
    print("checked:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checked: inputs and weight have to be bfloat16")


def test_what_does_not_belong_together_is_refused():
    """Tensors of other types or shapes never reach the kernel."""
    x, weight, bias = drawn((1, 32, 4, 4), 32, seed=0)
    packed = winograd.pack_weight(weight)
    for wrong, message in (
        ((x.float(), packed, bias), "have to be bfloat16"),
        ((x, packed, bias.double()), "the bias float32"),
        ((x[0], packed, bias), "expected inputs"),
        ((x, packed, bias[None]), "expected inputs"),
        ((x[:, :, :0], packed, bias), "expected inputs"),
        ((x, packed[:, :8], bias), "take a weight of shape"),
        ((x[:, :16], packed, bias.repeat(2)), "take a weight of shape"),
        ((x.repeat(1, 2, 1, 1), packed, bias[:16]), "take a weight of shape"),
        ((x[:, :0], packed[:0], bias), "expected inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            winograd.convolve(*wrong, True, False)


def test_a_kernel_that_cannot_run_is_named(monkeypatch):
    """Without the kernel the operator says what it needs."""
    x, weight, bias = drawn((1, 32, 4, 4), 32, seed=0)
    monkeypatch.setattr(winograd, "_kernel", lambda: None)
    with pytest.raises(RuntimeError, match="needs AVX512-BF16, and a C compiler"):
        winograd.convolve(x, winograd.pack_weight(weight), bias, True, False)


@needs_kernel
def test_strides_do_not_mislead():
    """A bias with gaps, an expanded weight, and thousands of channels are read as what they are."""
    x, weight, bias = drawn((1, 32, 6, 6), 64, seed=0)
    packed = winograd.pack_weight(weight)
    expected = winograd.convolve(x, packed, bias, False, False)
    gapped = bias.repeat_interleave(2)[::2]
    assert torch.equal(winograd.convolve(x, packed, gapped, False, False), expected)
    many, weight, bias = drawn((1, 12832, 2, 2), 32, seed=0, exact=True)
    found = winograd.convolve(many, winograd.pack_weight(weight), bias, False, False)
    assert torch.equal(found, plain(many, weight, bias, False, False).to(torch.bfloat16))


def test_convolutions_that_gain_nothing_are_left_alone():
    """1×1, strided, narrow ones, and those on a few pixels, go to oneDNN."""
    weight = torch.empty(64, 64, 3, 3)
    assert winograd.suits((4, 64, 56, 56), weight, (1, 1), (1, 1))
    assert winograd.suits((4, 64, 7, 7), weight, (1, 1), (1, 1))
    assert not winograd.suits((4, 64, 3, 3), weight, (1, 1), (1, 1))
    assert not winograd.suits((4, 64, 56, 56), weight, (1, 1), (2, 2))
    assert not winograd.suits((4, 64, 56, 56), weight, (0, 0), (1, 1))
    assert not winograd.suits((4, 64, 56, 56), torch.empty(64, 64, 1, 1), (0, 0), (1, 1))
    assert not winograd.suits((4, 48, 56, 56), torch.empty(64, 48, 3, 3), (1, 1), (1, 1))
    assert not winograd.suits((4, 64, 56, 56), torch.empty(24, 64, 3, 3), (1, 1), (1, 1))


def test_without_the_kernel_the_plan_does_without(tiny_model, photographs, monkeypatch):
    """A package that was installed without a compiler encodes all the same, and the plan says how."""
    monkeypatch.setattr(winograd, "_kernel", lambda: None)
    encoder = StagedEncoder(tiny_model, device="cpu")
    assert not encoder.plan.winograd
    assert "Winograd" not in str(encoder.plan)
    assert encoder.encode(photographs).shape == (len(photographs), encoder.dim)


@pytest.mark.skipif(not _gains_by_winograd(), reason="needs the kernel, and a CPU without AMX")
def test_the_plan_takes_it_in_bf16_alone(tiny_model, monkeypatch):
    """Not in float32, where vectors agree with open_clip's to 1e-5, nor where AVX-512 was switched off."""
    assert StagedEncoder(tiny_model, device="cpu").plan.winograd
    assert not StagedEncoder(tiny_model, device="cpu", precision="fp32").plan.winograd
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with pytest.warns(ClipRetrievalWarning, match="no bf16 instructions"):
        assert not StagedEncoder(tiny_model, device="cpu", precision="bf16").plan.winograd
