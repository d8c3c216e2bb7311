"""Winograd's convolutions: the same sums as the plain ones, by fewer products."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from warm_process import run_warm

from clipretrieval import ClipRetrievalWarning, StagedEncoder
from clipretrieval.encoding.engine import winograd
from clipretrieval.encoding.engine.planning import _has_amx, _has_fast_bf16

STAGES = ("stem", "layer1", "layer2", "mid", "late", "final")


@contextmanager
def limited_to(instructions):
    """Let the kernels use no more than these, as a user does; torch itself has read the limit long before."""
    with pytest.MonkeyPatch.context() as patch:
        if instructions == "avx2":
            patch.setenv("ATEN_CPU_CAPABILITY", "avx2")
        else:
            patch.delenv("ATEN_CPU_CAPABILITY", raising=False)
            patch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        yield


def runs(dtype, instructions):
    torch.zeros(64).add_(1)  # reads torch's limit
    with limited_to(instructions):
        return winograd.is_available(dtype)


@pytest.fixture(params=["bf16", "fp32", "fp32-avx2"])
def dtype(request):
    """A type that has a kernel here; float32 once with the best instructions and once with AVX2."""
    found = torch.bfloat16 if request.param == "bf16" else torch.float32
    instructions = request.param.removeprefix("fp32-")
    if not runs(found, instructions):
        pytest.skip("needs the CPU's instructions, and a C compiler at installation")
    with limited_to(instructions):
        yield found


needs_bf16 = pytest.mark.skipif(
    not runs(torch.bfloat16, "best"), reason="needs AVX512-BF16, and a C compiler at installation"
)
needs_fp32 = pytest.mark.skipif(
    not runs(torch.float32, "avx2"), reason="needs AVX2, and a C compiler at installation"
)


def drawn(shape, out, seed, dtype=torch.bfloat16, exact=False):
    """Inputs (of `dtype`, channels last), weight and bias; `exact` ones lose nothing in bf16's eight bits."""
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
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return x, weight, bias


@contextmanager
def threads_of_torch(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def plain(x, weight, bias, relu, pool):
    """The convolution by its definition, in float64."""
    y = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    y = y.relu() if relu else y
    return functional.avg_pool2d(y, 2) if pool else y


sizes = given(
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


@needs_bf16
@settings(max_examples=60, deadline=None)
@sizes
def test_sums_of_whole_numbers_are_exact(n, height, width, channels, out, relu, pool, threads, seed):
    """Where no number is rounded on the way, every output is the plain sum, for any sides and threads."""
    x, weight, bias = drawn((n, channels, height, width), out, seed, exact=True)
    pool = pool and min(height, width) > 1
    with threads_of_torch(threads):
        found = winograd.convolve(x, winograd.pack_weight(weight, torch.bfloat16), bias, relu, pool)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, plain(x, weight, bias, relu, pool).to(torch.bfloat16))


@needs_fp32
@settings(max_examples=60, deadline=None)
@sizes
def test_float32_outputs_are_the_plain_sums(n, height, width, channels, out, relu, pool, threads, seed):
    """Every output is the plain sum to 5e-6, for any sides, threads and instructions, which change no bit."""
    # These kernels take every multiple of 16.
    x, weight, bias = drawn((n, channels - 16, height, width), out - 16, seed, torch.float32)
    pool = pool and min(height, width) > 1
    exact, packed = plain(x, weight, bias, relu, pool), winograd.pack_weight(weight, torch.float32)
    found = {}
    for instructions in ("avx2", "best"):
        with threads_of_torch(threads), limited_to(instructions):
            found[instructions] = winograd.convolve(x, packed, bias, relu, pool)
    assert found["best"].is_contiguous(memory_format=torch.channels_last)
    assert (found["best"] - exact).abs().max() <= 5e-6 * exact.abs().max()
    assert torch.equal(found["best"], found["avx2"])


@needs_fp32
def test_float32_vectors_are_those_of_all_products(rn50_file, photographs, subtests, monkeypatch):
    """At every stage RN50's vectors agree to 1e-5 with those that oneDNN's convolutions make."""
    found = {}
    for instructions in ("avx2", "best"):
        with limited_to(instructions):
            encoder = StagedEncoder("RN50", rn50_file, device="cpu", precision="fp32")
            assert encoder.plan.winograd
            found[instructions] = encoder.encode_stages(photographs[:4], STAGES)
    monkeypatch.setattr(winograd, "_library", lambda: None)
    direct = StagedEncoder("RN50", rn50_file, device="cpu", precision="fp32")
    assert not direct.plan.winograd
    assert direct.fingerprint == encoder.fingerprint
    for stage, expected in direct.encode_stages(photographs[:4], STAGES).items():
        for instructions, vectors in found.items():
            with subtests.test(stage, instructions=instructions):
                assert np.abs(vectors[stage] - expected).max() < 1e-5 * np.abs(expected).max()


@needs_bf16
@pytest.mark.parametrize("side", [7, 56])
@pytest.mark.parametrize("channels", [32, 256])
def test_rounding_costs_little_more_than_bf16_itself(side, channels):
    """Outputs are within 0.45 % of the exact ones; storing those in bf16 alone costs 0.17 %."""
    x, weight, bias = drawn((2, channels, side, side), 64, seed=side)
    bias = torch.zeros_like(bias)  # it is exact, and would hide the sums' error
    exact = plain(x, weight, bias, relu=True, pool=False)
    found = winograd.convolve(x, winograd.pack_weight(weight, torch.bfloat16), bias, True, False)
    stored = (exact.to(torch.bfloat16) - exact).norm() / exact.norm()
    error = (found - exact).norm() / exact.norm()
    assert stored < error < 0.0045


def test_more_threads_change_no_bit(dtype):
    """One picture on many threads gives what it gives on one, and in a batch."""
    x, weight, bias = drawn((4, 64, 56, 56), 128, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    whole = winograd.convolve(x, packed, bias, True, False)
    for threads in (1, 3, 200):
        with threads_of_torch(threads):
            for row in range(4):
                one = winograd.convolve(x[row : row + 1], packed, bias, True, False)
                assert torch.equal(one[0], whole[row])


def test_no_pictures_and_no_numbers(dtype):
    """An empty batch gives an empty one, and a NaN spreads over its neighbours, at most over their tile."""
    x, weight, bias = drawn((2, 32, 8, 8), 32, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    assert winograd.convolve(x[:0], packed, bias, True, False).shape == (0, 32, 8, 8)
    x[0, 3, 4, 4] = torch.nan
    found = winograd.convolve(x, packed, bias, True, False)
    assert found[0, :, 3:6, 3:6].isnan().all()
    assert found[0].isnan().any(dim=0).sum() == (9 if dtype is torch.bfloat16 else 25)
    assert not found[1].isnan().any()


def test_any_layout_will_do(dtype):
    """Inputs that lie channels first are copied into the kernel's order."""
    x, weight, bias = drawn((2, 32, 8, 6), 32, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    expected = winograd.convolve(x, packed, bias, False, False)
    assert torch.equal(winograd.convolve(x.contiguous(), packed, bias, False, False), expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_code_calls_the_kernel(backend, dtype):
    """Under torch.compile the kernel is one operator of the graph, with the same outputs."""
    x, weight, bias = drawn((1, 32, 8, 8), 64, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    compiled = torch.compile(winograd.convolve, fullgraph=True, backend=backend)
    for pool in (False, True):
        found = compiled(x, packed, bias, True, pool)
        assert torch.equal(found, winograd.convolve(x, packed, bias, True, pool))


@pytest.mark.parametrize("pool", [False, True])
def test_torch_counts_the_operations_of_the_plain_sum(pool, dtype):
    """To torch's counter it is as much work as the convolution that it stands for."""
    x, weight, bias = drawn((2, 32, 9, 8), 64, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
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
    done = run_warm(["-c", program], check=True)
    assert done.stdout.startswith("checked: 32 channels to 32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_does_not_belong_together_is_refused(dtype):
    """Tensors of other types or shapes never reach the kernel."""
    x, weight, bias = drawn((1, 32, 4, 4), 32, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    other = torch.float32 if dtype is torch.bfloat16 else torch.bfloat16
    for wrong, message in (
        ((x.to(other), packed, bias), "both bfloat16 or both float32"),
        ((x.double(), packed.double(), bias), "both bfloat16 or both float32"),
        ((x, packed, bias.double()), "the bias float32"),
        ((x[0], packed, bias), "expected inputs"),
        ((x, packed, bias[None]), "expected inputs"),
        ((x[:, :, :0], packed, bias), "expected inputs"),
        ((x, packed[:, :8], bias), "take a weight of shape"),
        ((x, winograd.pack_weight(weight, other).to(dtype), bias), "take a weight of shape"),
        ((x[:, :16], packed, bias.repeat(2)), "take a weight of shape"),
        ((x[:, :24], packed[:, :, :24], bias), "take a weight of shape"),
        ((x.repeat(1, 2, 1, 1), packed, bias[:16]), "take a weight of shape"),
        ((x, packed[:0], bias[:0]), "take a weight of shape"),
        ((x[:, :0], packed[:0], bias), "expected inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            winograd.convolve(*wrong, True, False)


def test_a_kernel_that_cannot_run_is_named(monkeypatch):
    """Without the kernel the operator says what it needs."""
    x, weight, bias = drawn((1, 32, 4, 4), 32, seed=0)
    packed = winograd.pack_weight(weight, torch.bfloat16)
    with limited_to("avx2"), pytest.raises(RuntimeError, match="needs AVX512-BF16 for bfloat16"):
        winograd.convolve(x, packed, bias, True, False)
    monkeypatch.setattr(winograd, "_library", lambda: None)
    with pytest.raises(RuntimeError, match="a C compiler"):
        winograd.convolve(x, packed, bias, True, False)


def test_strides_do_not_mislead(dtype):
    """A bias with gaps, an expanded weight, and thousands of channels are read as what they are."""
    x, weight, bias = drawn((1, 32, 6, 6), 64, seed=0, dtype=dtype)
    packed = winograd.pack_weight(weight, dtype)
    expected = winograd.convolve(x, packed, bias, False, False)
    gapped = bias.repeat_interleave(2)[::2]
    assert torch.equal(winograd.convolve(x, packed, gapped, False, False), expected)
    many, weight, bias = drawn((1, 12832, 2, 2), 32, seed=0, dtype=dtype, exact=True)
    found = winograd.convolve(many, winograd.pack_weight(weight, dtype), bias, False, False)
    exact = plain(many, weight, bias, False, False)
    if dtype is torch.bfloat16:
        assert torch.equal(found, exact.to(dtype))
    else:
        assert (found - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize(
    ("dtype", "least_side", "multiple"), [(torch.bfloat16, 4, 32), (torch.float32, 6, 16)]
)
def test_convolutions_that_gain_nothing_are_left_alone(dtype, least_side, multiple):
    """1×1, strided, narrow ones, and those on a few pixels, go to oneDNN, as do types without a kernel."""

    def suits(side, channels=64, out=64, taps=3, padding=1, stride=1):
        weight = torch.empty(out, channels, taps, taps)
        return winograd.suits((4, channels, side, side), weight, (padding,) * 2, (stride,) * 2, dtype)

    assert suits(56)
    assert suits(7)
    assert suits(least_side)
    assert suits(56, channels=multiple, out=multiple)
    assert not suits(least_side - 1)
    assert not suits(1)
    assert not suits(56, stride=2)
    assert not suits(56, padding=0)
    assert not suits(56, taps=1, padding=0)
    assert not suits(56, channels=multiple + 8)
    assert not suits(56, out=multiple + 8)
    assert not winograd.suits((4, 64, 56, 56), torch.empty(64, 64, 3, 3), (1, 1), (1, 1), torch.float16)


def test_without_the_kernel_the_plan_does_without(tiny_model, photographs, monkeypatch):
    """A package that was installed without a compiler encodes all the same, and the plan says how."""
    monkeypatch.setattr(winograd, "_library", lambda: None)
    encoder = StagedEncoder(tiny_model, device="cpu")
    assert not encoder.plan.winograd
    assert "Winograd" not in str(encoder.plan)
    assert encoder.encode(photographs).shape == (len(photographs), encoder.dim)


@needs_fp32
def test_the_plan_takes_it_where_it_gains(tiny_model, monkeypatch):
    """In float32 on AVX2 and above, in bf16 unless AMX does better; the environment can limit both."""

    def planned(precision):
        return StagedEncoder(tiny_model, device="cpu", precision=precision).plan.winograd

    assert planned("fp32")
    if _has_fast_bf16():
        assert planned("bf16") == (winograd.is_available(torch.bfloat16) and not _has_amx())
    for name, narrow, none in (
        ("ONEDNN_MAX_CPU_ISA", "AVX2", "AVX"),
        ("ATEN_CPU_CAPABILITY", "avx2", "default"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, narrow)
            assert planned("fp32")
            assert not winograd.is_available(torch.bfloat16)
            patch.setenv(name, none)
            assert not planned("fp32")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    with pytest.warns(ClipRetrievalWarning, match="no bf16 instructions"):
        assert not planned("bf16")
