"""The job from source to folder: what comes out, for every form of source, and what the user is told."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from mixq.errors import ModelFileError
from mixq.formats.folder import ModelFolder
from mixq.formats.header import read_header
from mixq.formats.manifest import Manifest
from mixq.formats.packed import PackedLinear
from mixq.quantize.events import Event, Finished, Notice, ShardDone, Started, TensorDone
from mixq.quantize.job import Job, quantize
from mixq.quantize.report import sizes_of_folder
from mixq.quantize.scale_search import search
from tests.checkpoints import DTYPES, write_tiny_llama, write_tiny_mistral, write_tiny_mixtral


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards_of(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("format", ["nl4", "w4", "w8", "nf4"])
def test_the_folder_holds_every_tensor_as_the_search_made_it(format: str, tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", shards=3)
    result = quantize(tmp_path / "source", tmp_path / "out", format=format)
    folder = ModelFolder.open(tmp_path / "out")
    assert folder.nbytes == result.sizes.nbytes
    packed = 0
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        scheme = folder.quantization.scheme_for(module) if folder.quantization else None
        if scheme is None:
            assert torch.equal(folder.tensor(name), tensor)
            continue
        linear = folder.linear(module)
        assert isinstance(linear, PackedLinear)
        expected = search(tensor, scheme).packed
        for suffix, part in expected.tensors.items():
            assert torch.equal(linear.tensors[suffix], part), f"{module}.{suffix}"
        packed += 1
    assert packed == 2 * (4 + 3 * 4) + (format == "nl4")


def test_default_mix_of_nl4(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "out")
    folder = ModelFolder.open(tmp_path / "out")
    assert folder.quantization is not None
    found = {
        module: str(folder.quantization.scheme_for(module))
        for module in (
            "model.layers.1.block_sparse_moe.experts.3.w2",
            "model.layers.1.block_sparse_moe.gate",
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.self_attn.k_proj",
            "model.layers.0.self_attn.v_proj",
            "model.layers.0.self_attn.o_proj",
            "model.embed_tokens",
            "lm_head",
        )
    }
    assert list(found.values()) == ["nl4:32", "None", "nl4:16", "w8:128", "w8:128", "nl4:16", "None", "w8:128"]


def test_one_shard_a_layer_with_data_on_a_page_boundary_and_all_sums(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", layers=3)
    quantize(tmp_path / "source", tmp_path / "out")
    names = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert sorted(shards_of(tmp_path / "out")) == names
    for number, name in enumerate(names):
        header = read_header(tmp_path / "out" / name)
        assert header.data_start % 4096 == 0
        layers = {re.sub(r"model\.layers\.(\d+)\..*", r"\1", tensor) for tensor in header.entries}
        assert layers == {str(number)} if number < 3 else "lm_head.weight_packed" in header.entries
    manifest = Manifest.read(tmp_path / "out")
    listed = {*manifest.shards, *manifest.files, "mixq.json"}
    assert listed == {path.name for path in (tmp_path / "out").iterdir()}
    assert len(manifest.errors) == 3 * (4 + 12) + 1


@pytest.mark.parametrize("layout", ["per-expert", "fused"])
@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtype_sharding_and_expert_names_of_the_source_change_no_byte(
    layout: str, shards: int, dtype: str, tmp_path: Path
) -> None:
    write_tiny_mixtral(tmp_path / "reference")
    quantize(tmp_path / "reference", tmp_path / "expected")
    write_tiny_mixtral(tmp_path / "source", dtype=DTYPES[dtype], layout=layout, shards=shards)
    result = quantize(tmp_path / "source", tmp_path / "out")
    expected, found = contents(tmp_path / "expected"), contents(tmp_path / "out")
    del expected["mixq.json"], found["mixq.json"]  # says where it came from
    assert found == expected
    assert any("bfloat16" in text for text in result.notices) == (dtype != "bfloat16")


def test_rope_theta_in_both_places_gives_one_config(tmp_path: Path) -> None:
    for rope in ("top", "nested"):
        write_tiny_mixtral(tmp_path / rope, rope=rope)
        quantize(tmp_path / rope, tmp_path / f"{rope}-out")
        config = json.loads((tmp_path / f"{rope}-out" / "config.json").read_text())
        assert config["rope_theta"] == 1e6
        assert "rope_parameters" not in config
    assert shards_of(tmp_path / "top-out") == shards_of(tmp_path / "nested-out")
    assert ModelFolder.open(tmp_path / "top-out").config == ModelFolder.open(tmp_path / "nested-out").config


@pytest.mark.parametrize("format", ["nl4", "w4", "w8", "nf4"])
@pytest.mark.parametrize("write", [write_tiny_mistral, write_tiny_llama])
def test_dense_models(write: object, format: str, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path / "source")
    quantize(tmp_path / "source", tmp_path / "out", format=format)
    folder = ModelFolder.open(tmp_path / "out")
    down = folder.linear("model.layers.1.mlp.down_proj")
    assert isinstance(down, PackedLinear)
    assert down.scheme.name == format


def test_tied_embedding_has_no_head(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tie_word_embeddings=True)
    quantize(tmp_path / "source", tmp_path / "out")
    folder = ModelFolder.open(tmp_path / "out")
    with pytest.raises(KeyError):
        folder.linear("lm_head")


def test_events_count_weights_and_end_with_the_result(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    events: list[Event] = []
    result = quantize(tmp_path / "source", tmp_path / "out", on_event=events.append)
    assert isinstance(events[0], Started)
    assert (events[0].shards, events[0].shards_done, events[0].weights_done) == (3, 0, 0)
    tensors = [event for event in events if isinstance(event, TensorDone)]
    assert [event.weights_done for event in tensors] == sorted(event.weights_done for event in tensors)
    assert tensors[-1].weights_done == events[0].weights == result.sizes.weights
    assert sum(isinstance(event, ShardDone) for event in events) == 3
    assert events[-1] == Finished(result)
    assert sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")) == events[0].target_bytes
    json.dumps(result.as_dict())


def test_dry_run_writes_nothing_and_names_the_exact_sizes(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    job = Job(tmp_path / "source", tmp_path / "out")
    plan = job.dry_run()
    assert not (tmp_path / "out").exists()
    list(job.run())
    assert sizes_of_folder(ModelFolder.open(tmp_path / "out")).rows == plan.sizes.rows
    assert plan.sizes.source_bytes == ModelFolder.open(tmp_path / "source").nbytes
    written = sum(len(content) for content in contents(tmp_path / "out").values())
    assert written <= plan.disk_needed <= written + 2048 * 64
    json.dumps(plan.as_dict())


def test_a_source_without_tokenizer_is_quantized_with_a_warning(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", tokenizer=False)
    events: list[Event] = []
    result = quantize(tmp_path / "source", tmp_path / "out", on_event=events.append)
    assert [event.text for event in events if isinstance(event, Notice)] == list(result.notices)
    assert "no tokenizer.model" in result.notices[0]
    assert ModelFolder.open(tmp_path / "out").tokenizer_path is None


def test_tokenizer_and_generation_config_go_along(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source")
    (tmp_path / "source" / "notes.txt").write_text("not part of a model")
    quantize(tmp_path / "source", tmp_path / "out")
    for name in ("tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    assert not (tmp_path / "out" / "notes.txt").exists()


def test_a_group_that_does_not_fit_is_replaced_and_said(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", hidden=96, ffn=144)  # heads of 24; 96 = 3 * 32, 144 = 9 * 16
    result = quantize(tmp_path / "source", tmp_path / "out")
    text = " ".join(result.notices)
    assert "w2: 144 inputs do not divide into groups of 32; nl4:16 is used" in text
    assert "k: 96 inputs do not divide into groups of 128; w8:32 is used" in text
    folder = ModelFolder.open(tmp_path / "out")
    linear = folder.linear("model.layers.0.block_sparse_moe.experts.0.w2")
    assert isinstance(linear, PackedLinear)
    assert str(linear.scheme) == "nl4:16"


def test_what_fits_no_group_stays_in_bf16_and_is_said(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "source", hidden=128, ffn=120)
    result = quantize(tmp_path / "source", tmp_path / "out")
    assert any("w2: 120 inputs do not divide into any group of nl4; it stays bf16" in text for text in result.notices)
    name = "model.layers.0.block_sparse_moe.experts.0.w2.weight"
    assert torch.equal(ModelFolder.open(tmp_path / "out").tensor(name), tensors[name])


def test_in_a_w4_folder_all_experts_keep_one_scheme(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", hidden=128, ffn=120)
    result = quantize(tmp_path / "source", tmp_path / "out", format="w4")
    assert any("w1 and w2 and w3" in text and "it stays bf16" in text for text in result.notices)
    folder = ModelFolder.open(tmp_path / "out")
    assert not isinstance(folder.linear("model.layers.0.block_sparse_moe.experts.0.w1"), PackedLinear)
    assert isinstance(folder.linear("model.layers.0.self_attn.q_proj"), PackedLinear)


def test_outliers_are_reported_with_their_figure(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_tiny_mixtral(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    bad = "model.layers.1.block_sparse_moe.experts.2.w1"
    tensors[f"{bad}.weight"][:, 5] *= 300  # one input whose weights dwarf the rest of their rows
    save_file(tensors, path)
    report = quantize(tmp_path / "source", tmp_path / "out").errors
    assert [row.linear for row in report.badly_served] == [bad]
    assert report.worst[0].linear == bad
    assert report.badly_served[0].ratio is not None
    assert report.badly_served[0].ratio > 1.5
    assert len(report.worst) == 10
    assert quantize(tmp_path / "source", tmp_path / "out").errors == report  # of a finished folder: from mixq.json


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_by_name_and_place(dtype: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_tiny_mixtral(tmp_path / "source", dtype=DTYPES[dtype])
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.k_proj.weight"][3, 17] = float("nan")
    tensors["model.layers.1.self_attn.k_proj.weight"][40, 0] = float("-inf")
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=r"model\.layers\.1\.self_attn\.k_proj\.weight has 2 .* at \[3, 17\]"):
        quantize(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists()
    assert not list((tmp_path / "out").glob("*.partial"))

    result = quantize(tmp_path / "source", tmp_path / "other", allow_nonfinite=True)
    assert any("k_proj.weight has 2 weights" in text for text in result.notices)
    linear = ModelFolder.open(tmp_path / "other").linear("model.layers.1.self_attn.k_proj")
    assert isinstance(linear, PackedLinear)
    assert linear.dequantize()[3, 17] == 0


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.block_sparse_moe.gate.weight"])
def test_nan_in_a_tensor_that_stays_unquantized_is_refused_too(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_tiny_mixtral(tmp_path / "source", dtype=torch.float32)
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[5] = 3.4e38  # finite in float32, infinite in bfloat16
    save_file(tensors, path)
    with pytest.raises(ModelFileError, match=re.escape(name)):
        quantize(tmp_path / "source", tmp_path / "out")
