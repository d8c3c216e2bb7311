"""Which instructions the CPU has, by what the system says of it."""

from __future__ import annotations

import pytest

from clipretrieval.encoding.engine import instructions


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

    monkeypatch.setattr(instructions.platform, "machine", lambda: machine)
    monkeypatch.setattr(instructions.Path, "read_text", read_text)
    assert instructions.multiplies_bytes() is expected
