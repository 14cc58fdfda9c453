"""verify finds every change to a folder: flipped bits, cut files, missing ones and additional ones."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from mixq.errors import ModelFileError
from mixq.formats.manifest import Manifest
from mixq.quantize.job import quantize
from mixq.quantize.verify import verify
from tests.checkpoints import write_tiny_mixtral

SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    write_tiny_mixtral(folder / "source", ffn=128, experts=2)
    quantize(folder / "source", folder / "out")
    return folder / "out"


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in made.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def problems(folder: Path) -> dict[str, str]:
    report = verify(folder)
    assert report.ok == (not report.problems)
    json.dumps(report.as_dict())
    return {problem.file: problem.text for problem in report.problems}


def test_an_untouched_folder_is_whole(folder: Path) -> None:
    seen = []
    report = verify(folder, on_progress=lambda name, done, total: seen.append((name, done, total)))
    assert report.ok
    assert report.files == 8
    assert report.nbytes == sum(path.stat().st_size for path in folder.iterdir() if path.name != "mixq.json")
    assert seen[-1][1] == seen[-1][2] == report.nbytes


def test_one_flipped_bit_anywhere_is_found(folder: Path) -> None:
    seed = 7
    print(f"seed {seed}")
    chance = random.Random(seed)
    for path in sorted(folder.iterdir()):
        if path.name == "mixq.json":
            continue
        whole = path.read_bytes()
        for _ in range(5):
            changed = bytearray(whole)
            changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            assert "sha256" in problems(folder)[path.name]
        path.write_bytes(whole)
    assert problems(folder) == {}


@pytest.mark.parametrize("keep", [0, 7, 100, 4096, -1])
def test_a_cut_shard_is_found(keep: int, folder: Path) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:keep])
    found = problems(folder)
    assert "sha256" in found[SHARD]
    assert "truncated" in found["model"] or "has 0 bytes" in found["model"] or "has 7 bytes" in found["model"]


@pytest.mark.parametrize("name", [SHARD, "model.safetensors.index.json", "config.json", "tokenizer.model"])
def test_a_missing_file_is_found(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert problems(folder)[name] == "is missing"


def test_additional_files_are_found(folder: Path) -> None:
    (folder / "model-00004-of-00003.safetensors").write_bytes(b"")
    (folder / "code\x1b[31m.py").write_text("print()")
    (folder / "more").mkdir()
    found = problems(folder)
    assert found == dict.fromkeys(
        ("model-00004-of-00003.safetensors", r"code\x1b[31m.py", "more"), "is not part of the model"
    )


def test_a_tokenizer_added_later_is_a_problem_with_the_way_out(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    write_tiny_mixtral(source, ffn=128, experts=2, tokenizer=False)
    quantize(source, out)
    (out / "tokenizer.model").write_bytes(b"a tokenizer")
    found = problems(out)
    assert list(found) == ["tokenizer.model"]
    assert "was added after quantizing" in found["tokenizer.model"]
    (source / "tokenizer.model").write_bytes(b"a tokenizer")
    quantize(source, out)  # what the text advises
    assert problems(out) == {}


def test_a_lock_file_left_behind_is_no_problem(folder: Path) -> None:
    (folder / "job.lock").write_bytes(b"")
    assert problems(folder) == {}


def test_sums_made_to_fit_a_wrong_structure_are_no_help(folder: Path) -> None:
    """Somebody who changes a file and mixq.json alike still has to make a folder that fits its config."""
    import hashlib

    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 256
    (folder / "config.json").write_text(json.dumps(config))
    manifest = Manifest.read(folder)
    sums = {**manifest.files, "config.json": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()}
    replace(manifest, files=sums).write(folder)
    assert re.search("shape|config.json asks", problems(folder)["model"])


def test_a_folder_that_mixq_did_not_make(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    with pytest.raises(ModelFileError, match=r"no mixq\.json"):
        verify(tmp_path / "source")
    with pytest.raises(ModelFileError, match="not a folder"):
        verify(tmp_path / "nothing")


def test_a_folder_made_before_mixq_json_had_a_sum_of_its_own(folder: Path) -> None:
    raw = json.loads((folder / "mixq.json").read_text())
    for key in ("sha256", "sizes", "few_tokens"):
        del raw[key]
    (folder / "mixq.json").write_text(json.dumps(raw, indent=2))
    assert problems(folder) == {}


def test_a_bit_that_flips_in_mixq_json_is_found(folder: Path) -> None:
    chance, path = random.Random(3), folder / "mixq.json"
    whole = path.read_bytes()
    for _ in range(60):
        changed = bytearray(whole)
        changed[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(changed)
        try:
            assert "mixq.json" in problems(folder), changed
        except ModelFileError:
            continue  # it cannot even be read, and that is said
