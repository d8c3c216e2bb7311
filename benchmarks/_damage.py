"""Ways to damage the files of a store or a saved classifier, and to make their checksums right again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from clipretrieval.stores.local import segment
from clipretrieval.stores.local.folder_manifest import SegmentEntry

__all__ = ["damage", "rewrite_checksums"]

Random = np.random.Generator
Damage = Callable[[Path, Random], str]

VALUES = (
    "null", "true", "false", "0", "-1", "1", "2", "4294967296", "9223372036854775807", "-9223372036854775808",
    "1" + "0" * 30, "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", "Infinity", '""', '"x"', '"\\u0000"',
    '"\\ud800"', '"../../etc"', '"l2"', '"Flat"', '"HNSW8"', f'"{"A" * 20000}"', f'"{"IDMap," * 5000}"',
    "[]", "[[]]", "{}", '{"a":1}', "[" * 5000 + "]" * 5000,
)  # fmt: skip
"""JSON texts to put in the place of any value."""
STARTS = rb"I[HNPwx][A-Za-z0-9]{2}|il[a-z]{2}|full|sprs"
"""The letters with which parts of a FAISS file begin."""
NUMBERS = (0, 1, 2, 7, 255, 2**15, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -2, -(2**31))


def damage(path: Path, rng: Random) -> str:
    """Damage a file as its kind allows, and return how."""
    own = {".json": _DAMAGE_JSON, ".npy": _DAMAGE_ARRAY, ".faiss": _DAMAGE_INDEX}
    if path.name.startswith("segment-"):
        own[".bin"] = (_change_part,)
    if path.name.startswith("part-"):  # all in one line
        own[".json"] = _DAMAGE_ANY
    ways = own.get(path.suffix, _DAMAGE_ANY) if rng.random() < 0.7 else _DAMAGE_ANY
    return ways[rng.integers(len(ways))](path, rng)


def rewrite_checksums(folder: Path) -> None:
    """Make sizes and checksums right, as far as what is there is still a manifest or a saved classifier."""
    for path in sorted(folder.rglob("*.json"), reverse=True):
        if not stat.S_ISREG(path.lstat().st_mode):
            continue
        try:
            content = json.loads(path.read_bytes())
            kinds = ("files", "blobs", "parts") if path.name == "MANIFEST.json" else ()
            for entry in (each for kind in kinds for each in content.get(kind, {}).values()):
                data = (path.parent / entry["name"]).read_bytes() if _is_plain(path.parent, entry) else b""
                entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for entry in content.get("segments", []) if path.name == "MANIFEST.json" else ():
                if _is_plain(path.parent, entry):
                    _seal_segment(path.parent / entry["name"], entry, content["dim"])
            if "sha256" in content:
                del content["sha256"]
                canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
                content["sha256"] = hashlib.sha256(canonical.encode("ascii")).hexdigest()
            path.write_text(json.dumps(content, indent=2))
        except (ValueError, ArithmeticError, LookupError, AttributeError, TypeError, RecursionError, OSError):
            continue


def _seal_segment(path: Path, entry: dict[str, Any], dim: int) -> None:
    """Make the checksums of a segment right for what it holds."""
    parts, data = segment._parts(SegmentEntry(**entry), dim), path.read_bytes()
    end = segment._footer_start(parts)
    if end > len(data) + 1_000_000:  # the file cannot be made what the manifest says
        return
    digests: list[bytes] = []
    for part in parts.values():
        segment._write_part(lambda _: None, [data[part.start :][: part.size]], part.block, digests)
    footer = b"".join(digests)
    path.write_bytes(data[:end].ljust(end, b"\0") + footer)
    entry["sha256"] = hashlib.sha256(footer).hexdigest()


def _is_plain(folder: Path, entry: dict[str, Any]) -> bool:
    path = folder / entry["name"]
    return re.fullmatch(r"[\w.-]+", entry["name"]) is not None and stat.S_ISREG(path.lstat().st_mode)


def _flip_bit(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return "bit flipped"


def _set_bytes(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    place, count = int(rng.integers(len(data))), int(rng.integers(1, 65))
    fill = rng.bytes(count) if rng.random() < 0.5 else bytes([int(rng.choice([0, 255]))]) * count
    data[place : place + count] = fill
    path.write_bytes(data[: path.stat().st_size])
    return "bytes overwritten"


def _truncate(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(len(data)))])
    return "truncated"


def _extend(path: Path, rng: Random) -> str:
    path.write_bytes(path.read_bytes() + rng.bytes(int(rng.integers(1, 5000))))
    return "extended"


def _cut_out(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    place = int(rng.integers(len(data)))
    path.write_bytes(data[:place] + data[place + int(rng.integers(1, 100)) :])
    return "bytes cut out"


def _replace_file(path: Path, rng: Random) -> str:
    path.unlink()
    ways: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "empty": path.touch,
        "pipe": lambda: os.mkfifo(path),
        "link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path.name),
        "folder": path.mkdir,
        "sparse": lambda: (path.touch(), os.truncate(path, 1 << 28)),
    }
    how = list(ways)[rng.integers(len(ways))]
    ways[how]()
    return how


def _places(text: str) -> list[tuple[int, int]]:
    """Return where JSON values begin and end in a file that Python's json wrote, one a line."""
    pattern = re.compile(r'^\s*(?:"[^"]*": )?([^\s\[\]{}].*?|\[\]|\{\}),?$', re.MULTILINE)
    return [match.span(1) for match in pattern.finditer(text)]


def _change_value(path: Path, rng: Random) -> str:
    text = path.read_text()
    start, end = _places(text)[rng.integers(len(_places(text)))]
    path.write_text(text[:start] + VALUES[rng.integers(len(VALUES))] + text[end:])
    return "value of another kind"


def _change_a_little(path: Path, rng: Random) -> str:
    text = path.read_text()
    start, end = _places(text)[rng.integers(len(_places(text)))]
    value = text[start:end]
    digits = [place for place, letter in enumerate(value) if letter.isalnum()] or [0]
    place = digits[rng.integers(len(digits))]
    letter = str(rng.integers(10)) if value[place].isdigit() else "abcxyz"[rng.integers(6)]
    path.write_text(text[:start] + value[:place] + letter + value[place + 1 :] + text[end:])
    return "letter of a value changed"


def _drop_field(path: Path, rng: Random) -> str:
    content = json.loads(path.read_text())
    holders = [content]
    for holder in holders:
        holders += [each for each in holder.values() if isinstance(each, dict) and each]
    holder = holders[rng.integers(len(holders))]
    names = list(holder)
    name = names[rng.integers(len(names))]
    value = holder.pop(name)
    if rng.random() < 0.5:
        holder[f"{name}x"] = value
    path.write_text(json.dumps(content, indent=2))
    return "field dropped or renamed"


def _change_part(path: Path, rng: Random) -> str:
    """Put a number into a part of a segment, of which the vectors are but one."""
    entries = json.loads(path.with_name("MANIFEST.json").read_text())
    entry = next(each for each in entries["segments"] if each["name"] == path.name)
    parts = segment._parts(SegmentEntry(**entry), entries["dim"])
    name = [name for name, part in parts.items() if part.size][rng.integers(len(parts) - 2)]
    width, data = (4 if name in ("vectors", "order") else 8), bytearray(path.read_bytes())
    place = parts[name].start + width * int(rng.integers(max(1, parts[name].size // width)))
    number = NUMBERS[rng.integers(len(NUMBERS))] % 2 ** (8 * width)
    data[place : place + width] = number.to_bytes(width, "little")
    path.write_bytes(data)
    return f"{name} of a segment"


def _change_header(path: Path, rng: Random) -> str:
    data = path.read_bytes()
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode()
    changes: list[Callable[[], str]] = [
        lambda: re.sub(r"\(\d+", f"({NUMBERS[rng.integers(len(NUMBERS))]}", header),
        lambda: header.replace("<f4", ("<f8", ">f4", "|O", "<i8", "|V4", "<U1", "(2,)<f4")[rng.integers(7)]),
        lambda: header.replace("False", ("True", "None", "1", "((((")[rng.integers(4)]),
        lambda: header.replace("}", ("", "}}", "]", "'", "\n'''", "\\")[rng.integers(6)]),
        lambda: "{" * 200 + header,
        lambda: header.replace("descr", "describe"),
        lambda: "__import__('os').abort()",
    ]
    changed = changes[rng.integers(len(changes))]().encode()
    if rng.random() < 0.7:
        changed = changed[:length].ljust(length)
    path.write_bytes(data[:8] + len(changed).to_bytes(2, "little") + changed + data[10 + length :])
    return "header of the array"


def _change_version(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    data[int(rng.integers(10))] = int(rng.integers(256))
    path.write_bytes(data)
    return "start of the array"


def _change_number(path: Path, rng: Random) -> str:
    data = bytearray(path.read_bytes())
    width = int(rng.choice([4, 8]))
    # Numbers that say what follows are few, and most of them are near the start of something.
    starts = [match.start() for match in re.finditer(STARTS, data)]
    start = starts[rng.integers(len(starts))] if rng.random() < 0.8 else int(rng.integers(len(data)))
    place = min(start + int(rng.integers(160)), len(data) - width)
    number = NUMBERS[rng.integers(len(NUMBERS))] % 2 ** (8 * width)
    data[place : place + width] = number.to_bytes(width, "little")
    path.write_bytes(data)
    return "number of the index"


def _change_letters(path: Path, rng: Random) -> str:
    kinds = (b"IxF2", b"IxFI", b"IxSQ", b"IwFl", b"IHNf", b"IxPT", b"IxMp", b"null", b"il00", b"IwPQ")
    data = path.read_bytes()
    starts = [match.start() for match in re.finditer(STARTS, data)]
    start = starts[rng.integers(min(3, len(starts)))]
    path.write_bytes(data[:start] + kinds[rng.integers(len(kinds))] + data[start + 4 :])
    return "kind of the index"


def _nest(path: Path, rng: Random) -> str:
    head = (
        b"IxPT" + np.int32(8).tobytes() + np.int64(300).tobytes() + bytes(16) + b"\1" + np.int32(1).tobytes()
    )
    path.write_bytes((head + np.int32(0).tobytes()) * 100_000 + path.read_bytes())
    return "index in an index"


_DAMAGE_ANY: tuple[Damage, ...] = (
    _flip_bit, _flip_bit, _set_bytes, _truncate, _extend, _cut_out, _replace_file,
)  # fmt: skip
_DAMAGE_JSON: tuple[Damage, ...] = (_change_value, _change_value, _change_a_little, _drop_field)
_DAMAGE_ARRAY: tuple[Damage, ...] = (_change_header, _change_header, _change_version, _set_bytes)
_DAMAGE_INDEX: tuple[Damage, ...] = (
    _change_number, _change_number, _change_number, _change_letters, _set_bytes, _flip_bit, _nest,
)  # fmt: skip
