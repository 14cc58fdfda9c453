"""Synthetic model folders: they open, run and verify, equal the model made in memory, and leave nothing half."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import StorageError, UsageError
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.measure.speed import write_folder
from mixq.measure.speed.synthetic import Recipe, SyntheticWeights, parts, synthetic_model
from mixq.measure.speed.write_folder import FolderJob
from mixq.quantize.verify import verify
from tests.measure.speed.test_synthetic import MIXES, TINY, TINY_DENSE


def tensors_of(weights: ModelFolder | SyntheticWeights) -> Iterator[tuple[str, Tensor]]:
    for parameter in parameters(weights.config):
        if not parameter.quantizable:
            yield parameter.name, weights.tensor(parameter.name)
            continue
        linear = weights.linear(parameter.module)
        if isinstance(linear, PackedLinear):
            yield from ((f"{parameter.module}.{suffix}", tensor) for suffix, tensor in linear.tensors.items())
        else:
            yield parameter.name, linear


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("raw", [TINY, TINY_DENSE], ids=["moe", "dense"])
def test_the_folder_has_the_weights_of_the_model_in_memory(raw: dict[str, Any], mix: str, tmp_path: Path) -> None:
    FolderJob(tmp_path / "made", raw, mix=mix, seed=3).run()
    made = dict(tensors_of(SyntheticWeights.make(raw, mix=mix, seed=3)))
    read = dict(tensors_of(ModelFolder.open(tmp_path / "made")))
    assert made.keys() == read.keys()
    for name, tensor in made.items():
        assert tensor.dtype == read[name].dtype
        assert torch.equal(tensor, read[name]), name


def test_the_folder_runs_and_verifies(tmp_path: Path) -> None:
    FolderJob(tmp_path / "made", TINY).run()
    prompt = [5, 6, 7, 8, 9]
    model = mixq.load(tmp_path / "made", threads=1)
    assert torch.equal(model.forward(prompt), synthetic_model(TINY, threads=1).forward(prompt))
    report = verify(tmp_path / "made")
    assert report.ok, report.problems
    assert report.files == 5  # two layers, the rest, index and config


def test_one_shard_a_layer_and_one_for_the_rest(tmp_path: Path) -> None:
    FolderJob(tmp_path / "made", TINY, layers=1).run()
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert names == [
        "config.json",
        "mixq.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert json.loads((tmp_path / "made" / "config.json").read_text())["num_hidden_layers"] == 1
    folder = ModelFolder.open(tmp_path / "made")
    assert {"layers.0" in name for name in folder._shards.shards[0].header.entries} == {True}


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    job = FolderJob(tmp_path / "made", TINY)
    seen: list[tuple[int, int]] = []
    job.run(on_progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3
    assert seen[-1] == (job.nbytes, job.nbytes)
    assert job.nbytes == sum(path.stat().st_size for path in (tmp_path / "made").glob("*.safetensors"))


def test_one_part_at_a_time_is_in_memory() -> None:
    recipe = Recipe.of(TINY)
    places = {}
    for part, stored in parts(recipe, 0):
        places[part.layer] = {name: tensor.data_ptr() for name, tensor in stored.items()}
    assert list(places) == [0, 1, None]
    assert [*places[0].values()] == [*places[1].values()]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_exists_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "there"
    if kind == "folder":
        target.mkdir()
        (target / "keep").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="exists already"):
        FolderJob(target, TINY)
    assert kind != "folder" or (target / "keep").read_text() == "mine"


def test_a_folder_that_came_into_being_meanwhile_is_left_alone(tmp_path: Path) -> None:
    job = FolderJob(tmp_path / "made", TINY)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "keep").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        job.run()
    assert (tmp_path / "made" / "keep").read_text() == "mine"


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(write_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match="only 1,000 are free") as caught:
        FolderJob(tmp_path / "made", TINY)
    assert caught.value.exit_code == 5
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_nothing_stays_of_a_folder_that_was_not_finished(
    stopped: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write_folder.ShardWriter.write
    written: list[str] = []

    def interrupted(self: write_folder.ShardWriter, name: str, tensor: Tensor) -> None:
        written.append(name)
        if name.startswith("model.layers.1.self_attn"):
            raise stopped
        whole(self, name, tensor)

    monkeypatch.setattr(write_folder.ShardWriter, "write", interrupted)
    with pytest.raises((KeyboardInterrupt, OSError)):
        FolderJob(tmp_path / "made", TINY).run()
    assert len(written) > 1
    assert list(tmp_path.iterdir()) == []


def test_config_is_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed leaves a folder that does not open."""
    order: list[str] = []

    def note(path: Path, content: bytes) -> None:
        order.append(path.name)
        assert sorted(p.suffix for p in path.parent.glob("*.safetensors")) == [".safetensors"] * 3
        path.write_bytes(content)

    monkeypatch.setattr(write_folder, "atomic_write_bytes", note)
    FolderJob(tmp_path / "made", TINY).run()
    assert order[-1] == "config.json"


def test_sizes_are_known_before(tmp_path: Path) -> None:
    job = FolderJob(tmp_path / "made", "mistral-7b", layers=1)
    tensors: Mapping[str, Any] = job.recipe.parts[0].specs
    assert any(name.endswith("mlp.gate_proj.weight_codes") for name in tensors)
    assert 0.2e9 < job.nbytes < 1.0e9
