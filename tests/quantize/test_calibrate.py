"""Calibrating: each channel's root mean square is what the model itself sees, and the job stays resumable with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import DoesNotFitError, ModelFileError, UsageError
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.manifest import Manifest
from mixq.formats.mix import Mix
from mixq.formats.packed import PackedLinear
from mixq.kernels import native_library
from mixq.kernels.dispatch import ReferenceKernels
from mixq.quantize import calibrate as calibrate_module
from mixq.quantize.calibrate import FEW_TOKENS, Calibration, windows_of
from mixq.quantize.calibration_run import CalibrationRun, CalibrationText, blocks
from mixq.quantize.events import ShardDone, TensorDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.layout import plan_shards
from mixq.quantize.scale_search import search
from mixq.quantize.sources.open import open_source
from mixq.quantize.verify import verify
from mixq.system.paths import demo_source
from mixq.text.open import tokenizer_of
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral

Contents = dict[str, bytes]
TEXT = CalibrationText(
    "words.txt", "The quick brown fox jumps over 13 lazy dogs. Rome, Paris, {json}: [1, 2]. " * 60, 700
)


def contents(folder: Path) -> Contents:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def write_model(path: Path, write: Any = write_tiny_mixtral, **options: Any) -> Path:
    """A tiny model with the demo model's tokenizer, which has 1536 pieces."""
    tokenizer = (demo_source() / "tokenizer.model").read_bytes()
    write(path, vocab=1536, layers=3, **options)
    (path / "tokenizer.model").write_bytes(tokenizer)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_model(tmp_path / "source")


def seen_by_the_model(path: Path, windows: list[Tensor]) -> dict[str, Tensor]:
    """Mean square of what each linear layer is given, by running the whole model, with torch's kernels."""
    model = mixq.load(path)
    squares: dict[int, Tensor] = {}
    rows: dict[int, int] = {}
    kernels = model.kernels
    assert isinstance(kernels, ReferenceKernels)
    plain = ReferenceKernels.linear

    def linear(x: Tensor, weight: Any) -> Tensor:
        key = weight.data_ptr()
        squares[key] = squares.get(key, 0) + x.double().square().sum(0)
        rows[key] = rows.get(key, 0) + len(x)
        return plain(kernels, x, weight)

    kernels.linear = linear  # type: ignore[method-assign]
    kernels.linears = lambda x, weights: [linear(x, weight) for weight in weights]  # type: ignore[method-assign]
    for window in windows:
        model.forward(window.tolist())
    places = {p.module: model.folder.tensor(p.name).data_ptr() for p in parameters(model.config) if p.quantizable}
    return {module: squares[key] / rows[key] for module, key in places.items() if key in squares}


@pytest.mark.parametrize("write", [write_tiny_mixtral, write_tiny_mistral])
def test_importance_is_what_the_whole_model_sees(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate_module, "PRIOR_TOKENS", 0)
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    monkeypatch.setattr(calibrate_module, "BATCH", 300)  # several batches
    source = open_source(write_model(tmp_path / "source", write))
    windows = TEXT.windows(tokenizer_of(source.side_files()))
    expected = seen_by_the_model(tmp_path / "source", windows)
    run = CalibrationRun(source.config, windows)
    run.begin(source.tensor("model.embed_tokens.weight"))
    found: dict[str, Tensor] = {}
    for shard in plan_shards(source.config, Mix.resolve(source.config)):
        for block in blocks(shard.items):
            found |= run.importance(block, {item.parameter.name: source.tensor(item.parameter.name) for item in block})
    assert found.keys() >= expected.keys()
    for module, mean_square in expected.items():
        off = (found[module].double().square() - mean_square).norm() / mean_square.norm()
        assert off < 0.06, module  # bfloat16, and now and then a router that chooses otherwise for it
    assert 512 <= run.tokens <= 700


def test_a_calibrated_folder_is_what_the_weighed_search_makes(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "plain")
    result = quantize(source, tmp_path / "out", calibrate=TEXT)
    opened = open_source(source)
    run = CalibrationRun(opened.config, TEXT.windows(tokenizer_of(opened.side_files())))
    run.begin(opened.tensor("model.embed_tokens.weight"))
    folder, plain = ModelFolder.open(tmp_path / "out"), ModelFolder.open(tmp_path / "plain")
    checked = 0
    for shard in Job(source, tmp_path / "other", calibrate=TEXT).shards[:2]:
        for block in blocks(shard.items):
            weights = {item.parameter.name: opened.tensor(item.parameter.name) for item in block}
            for module, importance in run.importance(block, weights).items():
                linear, unweighed = folder.linear(module), plain.linear(module)
                assert isinstance(linear, PackedLinear)
                assert isinstance(unweighed, PackedLinear)
                expected = search(weights[f"{module}.weight"], linear.scheme, importance=importance).packed
                assert all(torch.equal(linear.tensors[suffix], part) for suffix, part in expected.tensors.items())
                first = next(iter(expected.tensors))
                assert not torch.equal(linear.tensors[first], unweighed.tensors[first])
                checked += 1
    assert checked == 2 * (4 + 4 * 3)
    assert result.errors.mean.keys() == {"nl4:16", "nl4:32", "w8:128"}
    assert not list((tmp_path / "out").glob("calibration*"))
    assert verify(tmp_path / "out").ok
    assert Manifest.read(tmp_path / "out").settings["calibrate"]["text"] == "words.txt"


def test_closed_after_each_tensor_and_gone_on_with_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected", calibrate=TEXT)
    expected = contents(tmp_path / "expected")
    for stop in range(1, 64, 9):
        target, seen = tmp_path / f"stopped-{stop}", 0
        run = Job(source, target, calibrate=TEXT).run()
        for event in run:
            seen += isinstance(event, TensorDone | ShardDone)
            if seen == stop:
                break
        run.close()  # type: ignore[attr-defined]
        quantize(source, target, calibrate=TEXT)
        assert contents(target) == expected, stop


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_rename_and_gone_on_with_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected", calibrate=TEXT)
    expected = contents(tmp_path / "expected")
    step, code = 0, 9
    while code == 9:
        step += 1
        target = tmp_path / f"killed-{step}"
        child = os.fork()
        if child == 0:
            _die_at_rename(step, source, target)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        quantize(source, target, calibrate=TEXT)
        assert contents(target) == expected, f"killed at step {step}"
    assert step > 2 * 3 * 3  # a state, a shard and the journal for each layer, before and after


def _die_at_rename(step: int, source: Path, target: Path) -> None:
    renames, rename = 0, Path.replace

    def dying(path: Path, other: Path) -> Path:
        nonlocal renames
        renames += 1
        if 2 * renames - 1 == step:
            os._exit(9)
        renamed = rename(path, other)
        if 2 * renames == step:
            os._exit(9)
        return renamed

    Path.replace = dying  # type: ignore[assignment,method-assign]
    try:
        quantize(source, target, calibrate=TEXT)
    except BaseException:  # noqa: BLE001 - the child must not go on into pytest
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("damage", ["remove", "change"])
def test_a_state_that_is_lost_begins_again(damage: str, source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected", calibrate=TEXT)
    run = Job(source, tmp_path / "out", calibrate=TEXT).run()
    while not isinstance(next(run), ShardDone):
        pass
    run.close()  # type: ignore[attr-defined]
    state = tmp_path / "out" / "calibration-00001.safetensors"
    if damage == "remove":
        state.unlink()
    else:
        state.write_bytes(state.read_bytes()[:-1] + b"\x01")
    result = quantize(source, tmp_path / "out", calibrate=TEXT)
    assert any("starts from the beginning" in text for text in result.notices)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_shard_damaged_behind_the_state_begins_again(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "expected", calibrate=TEXT)
    run, done = Job(source, tmp_path / "out", calibrate=TEXT).run(), 0
    while done < 2:
        done += isinstance(next(run), ShardDone)
    run.close()  # type: ignore[attr-defined]
    (tmp_path / "out" / "model-00001-of-00004.safetensors").unlink()
    result = quantize(source, tmp_path / "out", calibrate=TEXT)
    assert any("starts from the beginning" in text for text in result.notices)
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_a_journal_names_no_file_of_somebody_else(source: Path, tmp_path: Path) -> None:
    run = Job(source, tmp_path / "out", calibrate=TEXT).run()
    while not isinstance(next(run), ShardDone):
        pass
    run.close()  # type: ignore[attr-defined]
    (tmp_path / "victim").write_text("mine")
    journal = json.loads((tmp_path / "out" / "job.json").read_text())
    journal["shards"]["../victim"] = journal["shards"]["model-00001-of-00004.safetensors"]
    journal["state"] = {}
    (tmp_path / "out" / "job.json").write_text(json.dumps(journal))
    quantize(source, tmp_path / "out", calibrate=TEXT)
    assert (tmp_path / "victim").read_text() == "mine"


def test_another_tokenizer_is_another_job(source: Path, tmp_path: Path) -> None:
    run = Job(source, tmp_path / "out", calibrate=TEXT).run()
    while not isinstance(next(run), ShardDone):
        pass
    run.close()  # type: ignore[attr-defined]
    mistral_common = pytest.importorskip("mistral_common")
    other = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    (source / "tokenizer.model").write_bytes(other.read_bytes())
    with pytest.raises(UsageError, match="but the model has only"):
        quantize(source, tmp_path / "out", calibrate=TEXT)


def test_other_kernels_are_another_job(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if native_library.library() is None:
        pytest.skip("no native kernels")
    quantize(source, tmp_path / "out", calibrate=TEXT)
    monkeypatch.setenv("MIXQ_CPU_ISA", "reference")
    with pytest.raises(UsageError, match="kernels = "):
        quantize(source, tmp_path / "out", calibrate=TEXT)


def test_activations_that_are_not_finite_end_clearly(source: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"] *= 1e38
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ModelFileError, match="become NaN or infinite on the calibration text"):
        quantize(source, tmp_path / "out", calibrate=TEXT)
    assert not (tmp_path / "out" / "config.json").exists()


def test_the_number_of_threads_changes_no_byte(source: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            quantize(source, tmp_path / str(threads), calibrate=TEXT)
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_experts_that_see_few_tokens_are_named(tmp_path: Path) -> None:
    write_model(tmp_path / "source", experts=16)
    result = quantize(tmp_path / "source", tmp_path / "out", calibrate=TEXT)
    few = Manifest.read(tmp_path / "out").few_tokens
    assert few
    assert all(tokens < FEW_TOKENS for tokens in few.values())
    assert any(f"{len(few)} experts received few of the calibration text's" in text for text in result.notices)


def test_an_expert_that_sees_nothing_counts_as_its_layer_does(tmp_path: Path) -> None:
    source = open_source(write_model(tmp_path / "source"))
    calibration = Calibration(source.config, [torch.arange(1, 60)], ReferenceKernels)
    calibration.begin(source.tensor("model.embed_tokens.weight"))
    prefix = "model.layers.0.block_sparse_moe"
    calibration.route(
        source.tensor("model.layers.0.post_attention_layernorm.weight"), source.tensor(f"{prefix}.gate.weight")
    )
    calibration._topk_ids[calibration._topk_ids == 2] = 1
    w1, w2, w3 = (source.tensor(f"{prefix}.experts.2.{name}.weight") for name in ("w1", "w2", "w3"))
    d, f = calibration.feed_forward(0, 2, w1, w2, w3)
    torch.testing.assert_close(d.double().square(), calibration._layer_mean, rtol=1e-5, atol=0)
    assert not f.any()  # nothing is known: `normalised_importance` makes all columns alike
    assert calibration.few == {(0, 2): 0}


def test_windows_lie_evenly_over_a_long_text() -> None:
    windows = windows_of(range(1000, 1500), 1, 11, 45)
    assert [window[:3].tolist() for window in windows] == [[1, s, s + 1] for s in (1000, 1160, 1320, 1490)]
    assert all(len(window) == 11 for window in windows)


def test_windows_of_a_short_text() -> None:
    windows = windows_of(range(10, 35), 1, 11, 700)
    assert [window.tolist()[1] for window in windows] == [10, 20, 30]
    assert [len(window) for window in windows] == [11, 11, 6]


def test_what_cannot_be_calibrated(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        CalibrationText.read(str(tmp_path / "nowhere.txt"))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not UTF-8"):
        CalibrationText.read(str(tmp_path / "bytes"))
    with pytest.raises(UsageError, match="must be 512 to 1048576"):
        CalibrationText.read(str(tmp_path / "bytes"), 10)
    with pytest.raises(UsageError, match="only 1 of the 512 tokens"):
        Job(source, tmp_path / "out", calibrate=CalibrationText("short", "it", 700))
    with pytest.raises(UsageError, match="has no effect on nf4"):
        Job(source, tmp_path / "out", format="nf4", calibrate=TEXT)
    monkeypatch.setattr("mixq.quantize.job_plan.available_memory", lambda: 1 << 28)
    with pytest.raises(DoesNotFitError, match=r"takes about .* of memory") as error:
        quantize(source, tmp_path / "out", calibrate=TEXT)
    assert "--calibrate-tokens" in str(error.value.hint)
    (source / "tokenizer.model").unlink()
    with pytest.raises(UsageError, match=r"needs a tokenizer, but the source has no tokenizer\.model"):
        Job(source, tmp_path / "out", calibrate=TEXT)
    assert not (tmp_path / "out").exists()


def test_another_text_is_another_job(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", calibrate=TEXT)
    with pytest.raises(UsageError, match="with the setting"):
        quantize(source, tmp_path / "out")
    other = CalibrationText("words.txt", TEXT.text + "more", 700)
    with pytest.raises(UsageError, match="sha256"):
        quantize(source, tmp_path / "out", calibrate=other)
    assert json.loads((tmp_path / "out" / "mixq.json").read_text())["settings"]["calibrate"]["tokens"] == 700
