"""Recordings are read back as written, also by numpy alone; hostile and damaged files end in one kind of error."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixq.errors import ModelFileError, StorageError, UsageError
from mixq.experts.routing import draw_trace, parse_routing
from mixq.formats import npz
from mixq.plan.recording import KINDS, NOTHING, Facts, PromptFacts, Recording, read_routing
from tests.plan.recordings import recording_of

L, E, A, H = 3, 8, 2, 2
ARRAYS = [name for name in KINDS if name != "header"]


def made_up(prompt_tokens: int = 5, tokens: int = 7, seed: int = 0) -> Recording:
    draw = np.random.default_rng(seed)
    T = prompt_tokens + tokens
    experts = np.argsort(draw.random((T, L, E)), axis=-1)[..., :A].astype(np.uint8)
    predicted = np.argsort(draw.random((T, H, L, E)), axis=-1)[..., :A].astype(np.uint8)
    for ahead in range(H):
        predicted[:, ahead, : ahead + 1] = NOTHING
    weights = draw.random((T, L, A))
    return Recording(
        Facts(
            "synthetic",
            L,
            E,
            A,
            H,
            "sim",
            "0.0",
            "2026-01-01T00:00:00+00:00",
            (PromptFacts("Größe\n", prompt_tokens, tokens),),
            1000,
            200,
            300,
            4,
            6000,
            {"threads": 1, "quotas": [1, 2, 3]},
        ),
        experts,
        (weights / weights.sum(-1, keepdims=True)).astype(np.float16),
        predicted,
        draw.integers(0, 32000, T, dtype=np.int32),
        np.zeros(T, dtype=np.int32),
        np.arange(T) < prompt_tokens,
        draw.random(T).astype(np.float32),
    )


def same(a: Recording, b: Recording) -> bool:
    return a.facts == b.facts and all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made_up().write(tmp_path / "run.mqt")
    return tmp_path / "run.mqt"


def test_it_is_read_back_as_it_was_written(path: Path) -> None:
    found = Recording.read(path)
    assert same(found, made_up())
    assert len(found) == 12
    assert found.facts.cost is not None
    assert (found.facts.cost.expert_bytes, found.facts.cost.experts) == (1000, 8)
    assert not list(path.parent.glob("*.partial"))


def test_numpy_alone_reads_it(path: Path) -> None:
    recording = made_up()
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays) == sorted(KINDS)
        for name in ARRAYS:
            assert np.array_equal(arrays[name], getattr(recording, name))
            assert arrays[name].dtype.str == KINDS[name][0]
        header = json.loads(bytes(arrays["header"]))
    assert (header["format"], header["version"]) == ("mixq-trace", 2)
    assert header["prompts"] == [{"name": "Größe\n", "prompt_tokens": 5, "tokens": 7}]
    assert header["expert_bytes"] == 1000


def test_its_routing_is_that_of_the_replies(path: Path) -> None:
    recording = made_up()
    trace = read_routing(path)
    assert trace == recording.routing()
    assert trace.tokens == [[tuple(layer) for layer in token] for token in recording.experts[5:].tolist()]
    routing = parse_routing(f"trace {path}", layers=L, experts=E, active=A, read_trace=read_routing)
    assert draw_trace(routing, 14, layers=L, experts=E, active=A).tokens == trace.tokens * 2
    assert len(made_up(tokens=0).routing().tokens) == 5


def test_a_recording_without_sizes_and_predictions_is_read_back(tmp_path: Path) -> None:
    recording = recording_of(made_up().routing())
    recording.write(tmp_path / "new.mqt")
    found = Recording.read(tmp_path / "new.mqt")
    assert same(found, recording)
    assert found.routing() == made_up().routing()
    assert found.facts.cost is None
    assert found.facts.lookahead == 0


def test_the_first_version_is_refused(tmp_path: Path) -> None:
    """It was JSON lines."""
    path = tmp_path / "old.jsonl"
    path.write_text('{"format":"mixq-trace","version":1,"layers":1,"experts":2,"active":1}\n[[0]]\n')
    with pytest.raises(ModelFileError, match="not a recording of mixq"):
        Recording.read(path)


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def npy(array: Any, **options: Any) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, np.asanyarray(array), **options)
    return content.getvalue()


def header_with(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(content: dict[str, bytes]) -> None:
        array = np.load(io.BytesIO(content["header.npy"]))
        header = {**json.loads(bytes(array)), **changes}
        text = json.dumps({key: value for key, value in header.items() if value != "gone"})
        content["header.npy"] = npy(np.frombuffer(text.encode(), dtype=np.uint8))

    return change


def array_with(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[dict[str, bytes]], None]:
    def apply(content: dict[str, bytes]) -> None:
        array = np.load(io.BytesIO(content[f"{name}.npy"])).copy()
        made = change(array)
        content[f"{name}.npy"] = npy(array if made is None else made)

    return apply


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], None]:
    return lambda content: content.__setitem__(name, data)


def at(index: Any, value: Any) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(index, value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("seconds.npy"), "7 members"),
        (put("extra.npy", b""), "9 members"),
        (lambda c: c.update({"other.npy": c.pop("seconds.npy")}), "its members are"),
        (lambda c: c.update({"../seconds.npy": c.pop("seconds.npy")}), "its members are"),
        (put("experts.npy", b"not numpy"), "format 1.0"),
        (put("experts.npy", b""), "format 1.0"),
        (put("tokens.npy", npy(np.array([1], dtype=object), allow_pickle=True)), "not a plain array"),
        (array_with("tokens", lambda a: a.astype(np.int64)), "not a plain array of type <i4"),
        (array_with("tokens", lambda a: a.astype(">i4")), "not a plain array"),
        (array_with("experts", np.asfortranarray), "not a plain array"),
        (array_with("experts", lambda a: a[0]), "2 axes"),
        (array_with("experts", lambda a: a[:-1]), "experts has shape"),
        (array_with("predicted", lambda a: a[:, :1]), "predicted has shape"),
        (lambda c: c.update({"tokens.npy": c["tokens.npy"][:-1]}), "not what shape"),
        (lambda c: c.update({"tokens.npy": c["tokens.npy"] + b"x"}), "not what shape"),
        (put("is_prompt.npy", npy(np.full(12, 2, dtype=np.uint8)).replace(b"|u1", b"|b1")), "true and false"),
        (array_with("experts", at((0, 0, 0), 8)), "0 to 7"),
        (array_with("experts", at((0, 0), 3)), "different"),
        (array_with("predicted", at((0, 0, 1, 0), 255)), "predicted"),
        (array_with("predicted", at((0, 0, 1), 4)), "predicted"),
        (array_with("weights", at((0, 0, 0), np.nan)), "weights"),
        (array_with("weights", at((0, 0, 0), -1)), "weights"),
        (array_with("seconds", at(0, np.inf)), "seconds"),
        (array_with("tokens", at(0, -1)), "negative id"),
        (array_with("prompt", at(0, 1)), "none of its 1 prompts"),
        (array_with("prompt", at(0, -1)), "none of its 1 prompts"),
        (array_with("is_prompt", at(0, False)), "other numbers of tokens"),
        (put("header.npy", npy(np.frombuffer(b"[]", dtype=np.uint8))), "must be a JSON object"),
        (put("header.npy", npy(np.frombuffer(b"{\xff", dtype=np.uint8))), "is not JSON"),
        (put("header.npy", npy(np.frombuffer(b'{"a":' * 9999, dtype=np.uint8))), "JSON"),
        (header_with(format="other"), "mixq-trace"),
        (header_with(version=3), "version is 3; it must be 2"),
        (header_with(layers=True), "layers"),
        (header_with(layers=0), "layers"),
        (header_with(layers="3"), "layers"),
        (header_with(layers=10**9), "layers"),
        (header_with(experts=256), "experts"),
        (header_with(active=9, experts=8), "experts"),
        (header_with(lookahead=-1), "lookahead"),
        (header_with(model=None), "model"),
        (header_with(device="gone"), "device"),
        (header_with(prompts={}), "prompts"),
        (header_with(prompts=[1]), "prompts"),
        (header_with(prompts=[{"name": 1}]), "name"),
        (header_with(prompts=[{"name": "", "prompt_tokens": 4, "tokens": 8}]), "other numbers of tokens"),
        (header_with(expert_bytes=-5), "expert_bytes"),
        (header_with(expert_bytes=1.5), "expert_bytes"),
        (header_with(settings=[]), "settings"),
        (header_with(expert_bytes=2**50), "expert_bytes"),
        (header_with(x="y" * (8 << 20)), "its header has"),
    ],
)
def test_what_is_not_as_it_should_be_is_refused(
    path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    content = members(path)
    change(content)
    write_zip(path, content)
    with pytest.raises(ModelFileError, match=said):
        Recording.read(path)


def test_keys_that_are_not_known_are_left_alone_and_stored_members_read(path: Path) -> None:
    content = members(path)
    header_with(later={"x": 1}, settings="gone")(content)
    write_zip(path, content, zipfile.ZIP_STORED)
    assert Recording.read(path).facts.settings == {}


def test_no_member_is_allocated_for_what_it_cannot_hold(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few bytes that declare gigabytes: refused by their sizes, whatever they unpack to."""
    content = members(path)
    content["tokens.npy"] = npy(np.zeros(60_000_000, dtype=np.int32))
    write_zip(path, content)
    with pytest.raises(ModelFileError, match="prompt has shape"):  # 240 MB is allowed
        Recording.read(path)
    monkeypatch.setattr("mixq.plan.recording.MOST_BYTES", 1 << 20)
    with pytest.raises(ModelFileError, match="its arrays have 240"):
        Recording.read(path)
    path.write_bytes(path.read_bytes() + b"\0" * (1 << 20))
    with pytest.raises(ModelFileError, match="has at most"):
        Recording.read(path)


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """Change a field of the first central directory entry, or of the end record."""
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("mark", "offset", "value", "said"),
    [
        (b"PK\x01\x02", 24, struct.pack("<I", 0xFFFFFF00), "declares 4,294,967,040 bytes"),
        (b"PK\x01\x02", 8, b"\x01\x00", "encrypted"),
        (b"PK\x01\x02", 10, b"\x0c\x00", "a compression that numpy does not write"),
        (b"PK\x01\x02", 16, b"\0\0\0\0", "damaged"),  # the checksum
        (b"PK\x05\x06", 10, b"\xff\xff", "65535 members"),
        (b"PK\x05\x06", 12, b"\xff\xff\xff\xff", "directory of 4,294,967,295 bytes"),
        (b"PK\x05\x06", 20, b"\x05\x00", "its end"),
        (b"PK\x03\x04", 0, b"PK\x05\x06", "does not start like a zip"),
    ],
)
def test_zips_that_lie(path: Path, mark: bytes, offset: int, value: bytes, said: str) -> None:
    path.write_bytes(patched(path.read_bytes(), mark, offset, value))
    with pytest.raises(ModelFileError, match=said):
        Recording.read(path)


def test_a_large_directory_is_not_read(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-22] + b"PK\x06\x07" + b"\0" * 16 + data[-22:])
    with pytest.raises(ModelFileError, match="zip64"):
        Recording.read(path)


def test_every_truncation_and_many_changed_bytes_end_in_the_one_error(path: Path) -> None:
    data = path.read_bytes()
    draw = random.Random(5)
    cut = [data[:length] for length in range(0, len(data), 37)]
    changed = []
    for _ in range(400):
        broken = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            broken[draw.randrange(len(data))] = draw.randrange(256)
        changed.append(bytes(broken))
    harmless = 0
    for broken_file in (*cut, *changed):
        path.write_bytes(broken_file)
        try:
            assert same(Recording.read(path), made_up())  # a time of day, or what zip does not look at
            harmless += 1
        except ModelFileError:
            pass
    assert harmless < len(changed) / 2


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        Recording.read(tmp_path / "none.mqt")
    with pytest.raises(ModelFileError, match="not a regular file"):
        Recording.read(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ModelFileError):
        Recording.read(tmp_path / "empty")
    with pytest.raises(StorageError):
        made_up().write(tmp_path / "no" / "folder.mqt")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    recording = made_up()
    for wrong, said in (
        (replace(recording, tokens=recording.tokens[:-1]), "shape"),
        (replace(recording, facts=replace(recording.facts, experts=256)), "not possible"),
        (replace(recording, experts=np.zeros_like(recording.experts)), "different"),
        (replace(recording, facts=replace(recording.facts, prompts=())), "none of its 0 prompts"),
    ):
        with pytest.raises(UsageError, match=said):
            wrong.write(tmp_path / "run.mqt")
    assert not list(tmp_path.iterdir())


def test_an_old_file_stays_until_the_new_one_is_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    monkeypatch.setattr(npz.np, "savez_compressed", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made_up(seed=1).write(path)
    assert path.read_bytes() == before
