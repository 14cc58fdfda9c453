"""The model store: what state a folder is in, which names are safe, what may be removed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mixq.errors import MixqError, ModelFileError, UsageError
from mixq.formats import store
from mixq.formats.lock import target_lock
from mixq.quantize import quantize
from mixq.quantize.events import ShardDone
from mixq.quantize.job import Job
from mixq.system import paths
from tests.checkpoints import write_tiny_mixtral


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "tiny"
    write_tiny_mixtral(path)
    return path


@pytest.fixture(scope="session")
def finished(tiny: Path) -> Path:
    quantize(tiny, tiny.parent / "tiny-nl4")
    return tiny.parent / "tiny-nl4"


@pytest.fixture
def model(finished: Path) -> Path:
    """A finished model in the store."""
    return shutil.copytree(finished, paths.store() / "tiny-nl4")


@pytest.fixture
def unfinished(tiny: Path) -> Path:
    """A job in the store, interrupted after its first shard."""
    events = Job(tiny, paths.store() / "half").run()
    assert any(isinstance(event, ShardDone) for event in events)
    events.close()  # type: ignore[attr-defined]
    return paths.store() / "half"


def test_an_empty_store() -> None:
    assert store.names() == store.entries() == []
    paths.store().mkdir(parents=True)
    assert store.names() == store.entries() == []


def test_a_finished_model(model: Path) -> None:
    (entry,) = store.entries()
    assert (entry.name, entry.state, entry.problem, entry.next_step) == ("tiny-nl4", "ready", "", None)
    assert (entry.scheme, entry.made_by_mixq, entry.from_hub) == ("nl4", True, False)
    assert entry.source["name"] == "tiny"
    assert entry.nbytes == sum(path.stat().st_size for path in model.iterdir())
    assert entry.as_dict()["experts"] == entry.config["num_local_experts"]


def test_an_interrupted_job(unfinished: Path) -> None:
    (entry,) = store.entries()
    assert (entry.state, entry.shards_done, entry.shards, entry.made_by_mixq) == ("unfinished", 1, 3, True)
    assert "same mixq quantize" in str(entry.next_step)
    with pytest.raises(ModelFileError, match="not finished"):
        paths.resolve_model("half")


def test_a_job_at_work(unfinished: Path) -> None:
    with target_lock(unfinished):
        entry = store.find("half")
        assert entry.state == "running"
        with pytest.raises(MixqError, match="is working on half"):
            store.remove(entry)
    assert store.find("half").state == "unfinished"
    (unfinished / "job.lock").write_bytes(b"")  # left behind by a killed process
    assert store.find("half").state == "unfinished"


def test_killed_before_the_first_journal() -> None:
    (paths.store() / "begun").mkdir(parents=True)
    (paths.store() / "begun" / "job.lock").write_bytes(b"")
    assert store.find("begun").state == "unfinished"


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "model-00002-of-00003.safetensors"])
def test_a_file_that_is_missing(model: Path, file: str) -> None:
    (model / file).unlink()
    entry = store.find("tiny-nl4")
    assert (entry.state, entry.problem, entry.next_step) == ("damaged", f"{file} is missing", "mixq rm tiny-nl4")


def test_a_shard_that_is_cut_off(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    for left in (size - 1, 100, 4, 0):
        os.truncate(shard, left)
        assert store.find("tiny-nl4").problem == f"{shard.name} is truncated or damaged"


def test_a_manifest_or_journal_that_is_damaged(model: Path, unfinished: Path) -> None:
    (model / "mixq.json").write_text("{}")
    (unfinished / "job.json").write_text('{"shards": 3}')
    assert {entry.name: entry.state for entry in store.entries()} == {"tiny-nl4": "damaged", "half": "damaged"}


def test_a_checkpoint_that_somebody_put_there(tiny: Path) -> None:
    path = shutil.copytree(tiny, paths.store() / "mine")
    entry = store.find("mine")
    assert (entry.state, entry.scheme, entry.made_by_mixq) == ("ready", "bfloat16", False)
    with pytest.raises(UsageError, match="not written by mixq"):
        store.remove(entry)
    assert path.is_dir()
    (path / "model.safetensors").unlink()
    assert store.find("mine").problem == "model.safetensors is missing"


def test_removed(model: Path, unfinished: Path) -> None:
    store.remove(store.find("half"))
    assert store.names() == ["tiny-nl4"]
    store.remove(store.find("tiny-nl4"))
    assert os.listdir(paths.store()) == []


def test_what_a_killed_removal_left_goes_with_the_next(model: Path) -> None:
    shutil.copytree(model, paths.store() / f"{store.REMOVING}1-other")
    assert store.names() == ["tiny-nl4"]
    store.remove(store.find("tiny-nl4"))
    assert os.listdir(paths.store()) == []


def test_of_a_link_the_link_alone(finished: Path) -> None:
    paths.store().mkdir(parents=True)
    (paths.store() / "linked").symlink_to(finished)
    (paths.store() / "lost").symlink_to(finished / "nowhere")
    linked, lost = store.entries()
    assert (linked.state, linked.link, lost.state) == ("ready", finished, "damaged")
    before = sorted(path.name for path in finished.iterdir())
    store.remove(linked)
    store.remove(lost)
    assert os.listdir(paths.store()) == []
    assert sorted(path.name for path in finished.iterdir()) == before


def test_links_inside_a_folder_are_not_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    (model / "link").symlink_to(tmp_path / "precious")
    entry = store.find("tiny-nl4")
    assert store.others(entry) == ["link"]
    store.remove(entry)
    assert (tmp_path / "precious" / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../models/tiny-nl4", ".hidden", "/etc"])
def test_what_is_no_name_of_the_store(name: str, model: Path) -> None:
    with pytest.raises(UsageError, match="not the name of a model"):
        store.find(name)


def test_a_name_that_is_not_there(model: Path) -> None:
    with pytest.raises(ModelFileError, match="Did you mean 'tiny-nl4'"):
        store.find("tiny-nl")


@pytest.mark.parametrize("name", ["mixtral-8x7b-instruct-v0.1", "a", "A_b+c.d", "8x7b", "console"])
def test_safe_names(name: str) -> None:
    assert store.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".a", "-a", "a.", "a/b", "a\\b", "a b", "con", "NUL.gguf", "com1", "a\n", "é", "x" * 129]
)
def test_unsafe_names(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        store.check_name(name)


def test_hostile_configs_are_shown_as_damaged_or_plain_text() -> None:
    folder = paths.store() / "hostile"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("[" * 100_000)
    assert store.find("hostile").state == "damaged"
    content = {"architectures": [{"a": 1}], "quantization_config": {"quant_method": "\x1b[31mred"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    entry = store.find("hostile")
    assert "\x1b" not in entry.scheme
    assert entry.problem == "../../etc/passwd is missing"
