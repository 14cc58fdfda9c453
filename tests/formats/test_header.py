"""The header reader against the real library, and against files made to hurt."""

from __future__ import annotations

import json
import os
import random
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import ModelFileError
from mixq.formats.header import DTYPES, MAX_HEADER_BYTES, read_header
from mixq.formats.mapped import MappedShard

SECONDS = 1.0
SEED = 20260722


def entry(dtype: Any = "F32", shape: Any = (2, 2), offsets: Any = (0, 16), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def shard(header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    """The bytes of a file with this header (an object, or raw bytes) and these data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


GOOD = {"a": entry("BF16", (4,), (0, 8)), "b": entry("U8", (2, 4), (8, 16))}
ONE = b'"a":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}'

HOSTILE: dict[str, bytes] = {
    # the first eight bytes
    "empty file": b"",
    "seven bytes": b"\1\0\0\0\0\0\0",
    "length only, zero": struct.pack("<Q", 0),
    "length only, two": struct.pack("<Q", 2),
    "length one above the file": shard(GOOD, length=len(json.dumps(GOOD)) + 17),
    "length 2**64-1": shard(GOOD, length=2**64 - 1),
    "length 2**63": shard(GOOD, length=2**63),
    "length just above the limit": shard(GOOD, length=MAX_HEADER_BYTES + 1),
    "length ends inside a string": shard(GOOD, length=5),
    "length of the header less one": shard(GOOD, length=len(json.dumps(GOOD)) - 1),
    "length of the header and a data byte": shard(GOOD, length=len(json.dumps(GOOD)) + 1),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94.",
    "a zip (torch.save)": b"PK\x03\x04\0\0\0\0" + b"\0" * 64,
    "a gguf": b"GGUF\3\0\0\0" + b"\0" * 64,
    "html instead of a file": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "a git lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n",
    # JSON
    "not JSON": shard(b"{"),
    "not UTF-8": shard(b'{"\xff":{}}'),
    "UTF-16": shard('{"a":1}'.encode("utf-16")),
    "a byte order mark": shard(b"\xef\xbb\xbf{}", b""),
    "a list": shard([]),
    "a string": shard(b'"a"'),
    "a number": shard(b"1"),
    "null": shard(b"null"),
    "spaces only": shard(b" " * 64),
    "two objects": shard(b"{}{}", b""),
    "a comment": shard(b"{/* */}", b""),
    "trailing comma": shard(b"{" + ONE + b",}"),
    "NaN": shard(b'{"a":NaN}'),
    "Infinity as offset": shard(b'{"a":{"dtype":"U8","shape":[16],"data_offsets":[0,Infinity]}}'),
    "nested 100,000 deep": shard(b"[" * 100_000),
    "nested objects 100,000 deep": shard(b'{"a":' * 100_000),
    "a number of 10,000 digits": shard(b'{"a":{"dtype":"U8","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,16]}}'),
    "NUL bytes around": shard(b"\0{}\0", b""),
    # names
    "the same tensor twice": shard(b"{" + ONE + b"," + ONE + b"}"),
    "the same field twice": shard(b'{"a":{"dtype":"U8","dtype":"U8","shape":[16],"data_offsets":[0,16]}}'),
    "metadata twice": shard(b'{"__metadata__":{},"__metadata__":{},' + ONE + b"}"),
    "empty name": shard({"": entry()}),
    "name with a path": shard({"../../etc/passwd": entry()}),
    "name with a backslash": shard({"..\\x": entry()}),
    "name with NUL": shard({"a\0b": entry()}),
    "name with a terminal escape": shard({"\x1b[2J\x1b]0;owned\x07": entry()}),
    "name with a newline": shard({"a\nERROR: b": entry()}),
    "name with a right-to-left mark": shard({"a\u202eb": entry()}),
    "name with a lone surrogate": shard(b'{"\\ud800":{"dtype":"U8","shape":[16],"data_offsets":[0,16]}}'),
    "name of 10,000 letters": shard({"a" * 10_000: entry()}),
    # metadata
    "metadata is a list": shard({"__metadata__": [], **GOOD}),
    "metadata is null": shard({"__metadata__": None, **GOOD}),
    "metadata holds a number": shard({"__metadata__": {"format": 1}, **GOOD}),
    "metadata holds an object": shard({"__metadata__": {"format": {}}, **GOOD}),
    # fields
    "tensor is null": shard({"a": None}),
    "tensor is a list": shard({"a": [1, 2]}),
    "no dtype": shard({"a": {"shape": [2, 2], "data_offsets": [0, 16]}}),
    "no shape": shard({"a": {"dtype": "F32", "data_offsets": [0, 16]}}),
    "no offsets": shard({"a": {"dtype": "F32", "shape": [2, 2]}}),
    "an unknown field": shard({"a": entry(code="__import__('os')")}),
    "unknown dtype": shard({"a": entry("Q4")}),
    "dtype in small letters": shard({"a": entry("f32")}),
    "dtype of torch": shard({"a": entry("torch.float32")}),
    "dtype is a list": shard({"a": entry(["F32"])}),
    "dtype is null": shard({"a": entry(None)}),
    "shape is a number": shard({"a": entry(shape=4)}),
    "shape is text": shard({"a": entry(shape="22")}),
    "shape holds a float": shard({"a": entry(shape=[2.0, 2.0])}),
    "shape holds true": shard({"a": entry(shape=[True, 4])}),
    "shape is negative": shard({"a": entry(shape=[-2, -2])}),
    "shape overflows 64 bits to the right size": shard({"a": entry(shape=[2**62, 2**62, 4])}),
    "shape of 2**64": shard({"a": entry(shape=[2**64])}),
    "shape with nine dimensions": shard({"a": entry(shape=[1] * 8 + [4])}),
    "shape with a million dimensions": shard({"a": entry(shape=[1] * 1_000_000)}),
    "shape larger than the offsets": shard({"a": entry(shape=[2, 3])}),
    "shape smaller than the offsets": shard({"a": entry(shape=[3])}),
    "offsets of one number": shard({"a": entry(offsets=[16])}),
    "offsets of three numbers": shard({"a": entry(offsets=[0, 8, 16])}),
    "offsets hold null": shard({"a": entry(offsets=[0, None])}),
    "offsets hold floats": shard({"a": entry(offsets=[0.0, 16.0])}),
    "offsets hold text": shard({"a": entry(offsets=["0", "16"])}),
    "offsets are negative": shard({"a": entry(offsets=[-16, 0])}),
    "offsets run backwards": shard({"a": entry(offsets=[16, 0])}),
    "offsets overflow 64 bits": shard({"a": entry(offsets=[2**64 - 16, 2**64])}),
    "offsets wrap around": shard({"a": entry(offsets=[2**63, 2**63 + 16])}),
    # the file
    "hole at the beginning": shard({"a": entry("U8", [8], [8, 16])}),
    "hole in the middle": shard({"a": entry("U8", [4], [0, 4]), "b": entry("U8", [8], [8, 16])}),
    "overlap": shard({"a": entry("U8", [10], [0, 10]), "b": entry("U8", [8], [8, 16])}),
    "the same bytes twice": shard({"a": entry("U8", [16], [0, 16]), "b": entry("U8", [16], [0, 16])}),
    "one inside another": shard({"a": entry("U8", [16], [0, 16]), "b": entry("U8", [4], [4, 8])}),
    "an empty tensor inside another": shard({"a": entry("U8", [16], [0, 16]), "b": entry("U8", [0], [4, 4])}),
    "an empty tensor beyond the end": shard({"a": entry("U8", [16], [0, 16]), "b": entry("U8", [0], [99, 99])}),
    "data cut by a byte": shard(GOOD, b"\0" * 15),
    "no data": shard(GOOD, b""),
    "a byte too many": shard(GOOD, b"\0" * 17),
    "a zip behind the data": shard(GOOD, b"\0" * 16 + b"PK\x03\x04" + b"\0" * 40),
    "data for no tensor": shard({}, b"\0" * 16),
    "a terabyte that is not there": shard({"a": entry("U8", [2**40], [0, 2**40])}),
}


def test_there_are_enough_hostile_headers() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(HOSTILE[kind])
    started = time.process_time()
    with pytest.raises(ModelFileError) as caught:
        read_header(path)
    assert time.process_time() - started < SECONDS
    assert caught.value.exit_code == 3
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_the_good_header_that_the_hostile_ones_are_made_of_is_read(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(shard(GOOD))
    header = read_header(path)
    assert {name: (e.dtype, e.shape, e.nbytes) for name, e in header.entries.items()} == {
        "a": (torch.bfloat16, (4,), 8),
        "b": (torch.uint8, (2, 4), 8),
    }


def test_a_header_above_the_limit_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 1 << 36))
        file.truncate(1 << 37)  # sparse: takes no disk, but 64 GiB of memory where the header is read first
    with pytest.raises(ModelFileError, match=f"the limit is {MAX_HEADER_BYTES:,}"):
        read_header(path)


def test_a_truncated_file_says_how_much_is_there(tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00019.safetensors"
    head = shard({"a": entry("U8", [4_900_000_000], [0, 4_900_000_000])}, b"")
    with path.open("wb") as file:
        file.write(head)
        file.truncate(3_100_000_000)  # sparse: takes no disk
    with pytest.raises(ModelFileError, match=r"is 3\.1 GB of 4\.9 GB \(1,800,000,\d\d\d bytes are missing\)") as caught:
        read_header(path)
    assert caught.value.hint is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    for path in (tmp_path / "model.safetensors", Path("/dev/zero"), tmp_path):
        with pytest.raises(ModelFileError, match="not a regular file"):
            read_header(path)


def test_missing_files_and_links_in_a_circle_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        read_header(tmp_path / "nowhere")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelFileError, match="is a broken symlink"):
        read_header(tmp_path / "link")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelFileError, match="symlink loop"):
        read_header(tmp_path / "loop")


@pytest.mark.parametrize("filler", [b'"%07d":{},', b'"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'])
def test_a_header_full_to_the_limit_takes_bounded_time(filler: bytes, tmp_path: Path) -> None:
    count = (MAX_HEADER_BYTES - 100) // (len(filler) + 4)
    text = b"{" + b"".join(filler % i for i in range(count))[:-1] + b"}"
    path = tmp_path / "full.safetensors"
    path.write_bytes(shard(text, b""))
    started = time.process_time()
    try:
        header = read_header(path)
    except ModelFileError:
        pass
    else:
        assert len(header.entries) == count
    assert time.process_time() - started < 10 * SECONDS


def mutations(content: bytes, random_: random.Random) -> bytes:
    """Damage a valid file as a structure-aware fuzzer does."""
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length], content[8 + length :]
    kind = random_.randrange(9)
    if kind == 0:  # flip bits anywhere
        damaged = bytearray(content)
        for _ in range(random_.randint(1, 8)):
            damaged[random_.randrange(len(damaged))] ^= 1 << random_.randrange(8)
        return bytes(damaged)
    if kind == 1:
        return content[: random_.randrange(len(content))]
    if kind == 2:
        return shard(
            text, data, random_.choice([0, 1, length - 1, length + 1, 2**32, 2**64 - 1, random_.getrandbits(64)])
        )
    if kind == 3:  # replace a number by a telling one
        spots = [i for i in range(len(text)) if text[i : i + 1].isdigit()]
        at = random_.choice(spots)
        number = random_.choice([b"-1", b"18446744073709551616", b"1e9", b"0.5", b"true", b'"8"', b"null", b"99999999"])
        return shard(text[:at] + number + text[at + 1 :], data)
    header = json.loads(text)
    names = [name for name in header if name != "__metadata__"]
    name = random_.choice(names)
    if kind == 4:  # drop or add a tensor
        header.pop(name) if random_.random() < 0.5 else header.update({"extra": header[name]})
    elif kind == 5:  # swap fields of two tensors
        other = random_.choice(names)
        key = random_.choice(["dtype", "shape", "data_offsets"])
        header[name][key], header[other][key] = header[other][key], header[name][key]
    elif kind == 6:
        header[name]["dtype"] = random_.choice([*DTYPES, "F8", "", "I128"])
    elif kind == 7:
        header[name]["data_offsets"] = [n + random_.randint(-8, 8) for n in header[name]["data_offsets"]]
    else:
        return shard(text[: random_.randrange(length)] + text[random_.randrange(length) :], data)
    return shard(header, data)


def test_mutated_files_are_read_rightly_or_refused(tmp_path: Path) -> None:
    """10,000 seeded mutations: a ModelFileError, or a header whose tensors tile the file. Nothing else, ever."""
    print(f"seed {SEED}")
    random_ = random.Random(SEED)
    tensors = {f"layers.{i}.w": torch.arange(i * 3).to(list(DTYPES.values())[i % 3 + 1]) for i in range(12)}
    content = safetensors.torch.save(tensors, {"format": "pt"})
    path = tmp_path / "mutated.safetensors"
    refused: list[str] = []
    started = time.process_time()
    path.touch()
    for _ in range(10_000):
        damaged = mutations(content, random_)
        with path.open("r+b") as file:  # opening with "wb" takes ten times as long on some file systems
            file.write(damaged)
            file.truncate()
        try:
            mapped = MappedShard(path)
        except ModelFileError as error:
            refused.append(error.message)
            continue
        spans = sorted((e.start, e.end) for e in mapped.header.entries.values())
        assert sum(end - start for start, end in spans) == path.stat().st_size - mapped.header.data_start
        for name in mapped.header.entries:
            mapped.tensor(name).clone()
    assert time.process_time() - started < 60
    assert all(message.isprintable() for message in refused)
    assert 5000 < len(refused) < 10_000  # both branches are taken


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abcXYZ019._-", min_size=1, max_size=30).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    )
)
def test_what_the_library_writes_is_read(tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, Any]) -> None:
    tensors = {
        name: torch.randint(0, 2, shape, dtype=torch.uint8).to(DTYPES[dtype]) for name, (dtype, shape) in chosen.items()
    }
    path = tmp_path_factory.mktemp("library") / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"made": "by a test"})
    shard_ = MappedShard(path)
    assert shard_.header.metadata == {"made": "by a test"}
    assert shard_.header.entries.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = shard_.tensor(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert read.contiguous().view(-1).view(torch.uint8).equal(tensor.view(-1).view(torch.uint8))


def test_the_table_of_dtypes_is_in_the_librarys_order(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.zeros(1).to(dtype) for i, dtype in enumerate(DTYPES.values())}
    safetensors.torch.save_file(tensors, tmp_path / "all.safetensors")
    entries = read_header(tmp_path / "all.safetensors").entries
    assert sorted(entries, key=lambda name: -entries[name].start) == list(tensors)
