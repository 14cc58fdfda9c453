"""A hub's repository as a source: the same folder as from a download, whatever the network does meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixq.errors import MixqError, ModelFileError, StorageError, UsageError
from mixq.formats.manifest import Manifest
from mixq.quantize.job import Job, quantize
from mixq.quantize.sources import hub as hub_module
from mixq.quantize.sources import ranges
from mixq.quantize.sources.hub import Hub, is_repository
from mixq.quantize.sources.open import open_place
from mixq.quantize.sources.ranges import TIMEOUT, RangeReader
from tests.checkpoints import write_tiny_mixtral
from tests.fake_hub import COMMIT, FakeHub, folder_contents
from tests.mistral_checkpoints import write_release

NAME = "some-one/tiny.Mixtral-v0.1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small parts, so that a tiny model has several, and no waiting between attempts."""
    monkeypatch.setattr(ranges, "PART", 20_000)
    monkeypatch.setattr(ranges, "CHUNK", 3000)
    monkeypatch.setattr(hub_module, "FIRST_READ", 1000)
    monkeypatch.setattr(ranges, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(ranges, "LONGEST_WAIT", 0.01)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_tiny_mixtral(tmp_path / "source", shards=3)
    return tmp_path / "source"


@pytest.fixture
def hub(source: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub({NAME: folder_contents(source)}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def opened(name: str = NAME, revision: str | None = None) -> Hub:
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers

    reader = RangeReader(get_session(), build_hf_headers(), first_wait=0.001)
    return Hub(name, revision, reader=reader)


def test_the_folder_is_the_one_from_a_download(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected")
    result = quantize(open_place(opened()), tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    assert not result.notices
    assert Manifest.read(tmp_path / "out").source["revision"] == COMMIT
    for name in ("tokenizer.model", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    weights = sum(content.size for name, content in folder_contents(source).items() if name.endswith(".safetensors"))
    assert weights < hub.sent < weights + 20_000  # nothing is fetched twice
    assert all(COMMIT in path for path, _, _ in hub.requests if "/resolve/" in path)


def test_fused_experts_are_fetched_by_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(tmp_path / "source", layout="fused")
    quantize(tmp_path / "source", tmp_path / "expected")
    with FakeHub({NAME: folder_contents(tmp_path / "source")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        quantize(open_place(opened()), tmp_path / "out")
        assert hub.sent < 1.2 * (tmp_path / "source" / "model.safetensors").stat().st_size
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_a_release_of_mistral_on_the_hub(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    tensors = write_tiny_mixtral(tmp_path / "again")
    write_release(tmp_path / "release", tensors, json.loads((tmp_path / "again" / "config.json").read_text()))
    quantize(tmp_path / "again", tmp_path / "expected")
    with FakeHub({NAME: folder_contents(tmp_path / "release")}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        quantize(open_place(opened()), tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


RECOVERABLE = ["cut:0", "cut:1", "cut:777", "cut:19999", "drop", "other range", "wrong length", "status:503"]
RECOVERABLE += ["status:429", "status:408", "status:500"]


@pytest.mark.parametrize("fault", RECOVERABLE)
def test_faults_that_pass(fault: str, hub: FakeHub, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected")
    checkpoint = open_place(opened())
    hub.faults = [None, fault, None, None, fault, fault, None, fault]
    quantize(checkpoint, tmp_path / "out")
    assert not hub.faults
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_cut_at_fifty_places(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected")
    checkpoint = open_place(opened())
    hub.faults = [f"cut:{389 * i}" for i in range(50)]
    quantize(checkpoint, tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("etag", ModelFileError, "has changed on the hub: its content is different now"),
        ("linked etag", ModelFileError, "has changed on the hub: its content is different now"),
        ("longer", ModelFileError, "has changed on the hub: it has"),
        ("status:416", ModelFileError, "has changed on the hub: it ends before byte"),
        ("status:403", StorageError, "the server answered 403"),
        ("status:404", StorageError, "the server answered 404"),
        ("whole", StorageError, "cannot be read in parts"),
    ],
)
def test_faults_that_do_not(
    fault: str, kind: type[MixqError], message: str, hub: FakeHub, source: Path, tmp_path: Path
) -> None:
    checkpoint = open_place(opened())
    hub.faults = [None, None, fault]
    with pytest.raises(kind, match=message):
        quantize(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob("*.partial"))
    quantize(open_place(opened()), tmp_path / "out")  # and it is gone on with when the hub is itself again
    quantize(source, tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_a_server_that_stays_busy_is_given_up_and_gone_on_with(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint = open_place(opened())
    hub.faults = [None] * 20 + ["status:503"] * 100
    with pytest.raises(StorageError, match=r"the server answered 503 \(after 8 attempts\)") as error:
        quantize(checkpoint, tmp_path / "out")
    assert error.value.exit_code == 5
    assert "to resume" in str(error.value.hint)
    hub.faults = []
    assert quantize(open_place(opened()), tmp_path / "out").path == tmp_path / "out"


def test_no_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached"):
        opened()


def test_a_repository_or_revision_that_is_not_there(hub: FakeHub) -> None:
    with pytest.raises(ModelFileError, match="has no repository 'some-one/other'"):
        opened("some-one/other")
    with pytest.raises(ModelFileError, match="has no revision 'v9'"):
        opened(revision="v9")
    assert opened(revision="main").revision == COMMIT


def test_a_gated_repository(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub({NAME: folder_contents(source)}, gated=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(StorageError, match="is gated") as error:
            opened()
    assert "hf auth login" in str(error.value.hint)


def test_the_token_goes_to_the_hub_and_not_to_where_it_sends(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub({NAME: folder_contents(source)}, token="hf_secret", redirect=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(ModelFileError, match="has no repository"):
            opened()
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        quantize(open_place(opened()), tmp_path / "out")
        resolved = [authorization for path, _, authorization in hub.requests if "/resolve/" in path]
    assert {"Bearer hf_secret", None} == set(resolved)  # with it at the hub, without it at the storage
    quantize(source, tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_a_storage_that_names_other_content_than_the_hub(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_mixtral(source.parent / "other", shards=3, seed=1)
    with FakeHub({NAME: folder_contents(source)}, redirect=True) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        place = opened()
        hub.repositories = {NAME: folder_contents(source.parent / "other")}
        with pytest.raises(ModelFileError, match="has changed on the hub"):
            open_place(place)


def test_a_mirror_that_sends_whole_files_only(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub({NAME: folder_contents(source)}, ranges=False) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(StorageError, match="cannot be read in parts"):
            open_place(opened())


def test_pickled_repositories_are_refused(tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: content for name, content in folder_contents(source).items() if "safetensors" not in name}
    files["pytorch_model.bin"] = files["config.json"]
    with FakeHub({NAME: files}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        with pytest.raises(UsageError, match="only pickled weights"):
            open_place(opened(), allow_pickle=True)


def test_another_version_is_another_source(hub: FakeHub, source: Path, tmp_path: Path) -> None:
    run = Job(open_place(opened()), tmp_path / "out").run()
    for _ in range(20):
        next(run)
    run.close()  # type: ignore[attr-defined]
    write_tiny_mixtral(source.parent / "other", shards=3, seed=1)
    hub.repositories = {NAME: folder_contents(source.parent / "other")}
    with pytest.raises(UsageError, match="was started with another checkpoint"):
        quantize(open_place(opened()), tmp_path / "out")


def test_whatever_goes_wrong_in_a_thread_is_raised_and_nothing_hangs(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_place(opened())

    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(RangeReader, "_check", broken)
        for _ in range(6):  # more often than there are threads
            with pytest.raises(ZeroDivisionError):
                source.tensor("model.embed_tokens.weight")
    assert source.tensor("model.embed_tokens.weight").shape == (64, 128)


def test_a_read_that_hangs_ends_when_it_is_cancelled(hub: FakeHub) -> None:
    source = open_place(opened())
    hub.faults = ["stall:10"] * 8
    threading.Timer(0.2, source.cancel).start()
    began = time.monotonic()
    with pytest.raises(StorageError, match="stopped"):
        source.tensor("model.embed_tokens.weight")
    assert time.monotonic() - began < TIMEOUT / 2  # no stall was waited for
    hub.faults = []
    with pytest.raises(StorageError, match="stopped"):  # for good: a job that reads ahead must not begin anew
        source.tensor("model.embed_tokens.weight")


def test_ctrl_c_while_the_network_hangs_ends_the_job(hub: FakeHub, tmp_path: Path) -> None:
    run = Job(open_place(opened()), tmp_path / "out").run()
    for _ in range(4):
        next(run)
    hub.faults = ["stall:10"] * 500
    # a real signal: it also wakes a thread that waits on a lock
    threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert time.monotonic() - began < TIMEOUT / 2  # no stall was waited for, in the read ahead neither
    assert not list((tmp_path / "out").glob("*.partial"))


@pytest.mark.parametrize("answer", ["<html>", "[]", '{"siblings": [{}]}', '{"sha": 5}'])
def test_a_hub_that_answers_with_something_else(answer: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests import fake_hub

    def info(self: fake_hub._Handler, name: str, revision: str | None) -> None:
        self._reply(200, answer.encode(), {"Content-Type": "application/json"})

    monkeypatch.setattr(fake_hub._Handler, "_info", info)
    with pytest.raises((StorageError, ModelFileError)):
        opened()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", True),
        ("a/b", True),
        ("only-a-name", False),
        ("../escape", False),
        ("a/b/c", False),
        ("a/..", False),
        ("-a/b", False),
        ("a/b?c", False),
    ],
)
def test_names_of_repositories(text: str, expected: bool) -> None:
    assert is_repository(text) is expected
