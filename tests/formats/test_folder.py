"""Model folders of every layout, and of every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from mixq.errors import ModelFileError
from mixq.formats import nf4
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.formats.quantization import ATTENTION_TARGET, EXPERTS_TARGET, QuantizationConfig
from mixq.formats.scheme import Scheme

MIX = {
    r".*\.experts\.\d+\.w[123]": Scheme("nl4", 32),
    r".*\.self_attn\.(q|o)_proj": Scheme("nl4", 16),
    r".*\.self_attn\.(k|v)_proj|lm_head": Scheme("w8", 128),
}
EXPERT = "model.layers.1.block_sparse_moe.experts.3"


def rewrite(path: Path, change: dict[str, Tensor | None]) -> None:
    """Change, add or (None) remove tensors of a folder with one file."""
    stored: dict[str, Tensor | None] = dict(safetensors.torch.load_file(path / "model.safetensors"))
    stored.update(change)
    kept = {name: tensor.clone() for name, tensor in stored.items() if tensor is not None}
    safetensors.torch.save_file(kept, path / "model.safetensors", {"format": "pt"})


@pytest.fixture
def unquantized(tmp_path: Path, folders: SimpleNamespace) -> Path:
    config = folders.tiny_config()
    folders.write_folder(tmp_path / "model", config, folders.random_state(config))
    return tmp_path / "model"


@pytest.fixture
def own(tmp_path: Path, folders: SimpleNamespace) -> Path:
    config = folders.tiny_config()
    folders.write_folder(tmp_path / "model", config, folders.random_state(config), QuantizationConfig.mixq(MIX))
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shards", [1, 5])
def test_an_unquantized_folder(dtype: torch.dtype, shards: int, tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    state = folders.random_state(config, dtype)
    folders.write_folder(tmp_path, config, state, shards=shards)
    folder = ModelFolder.open(tmp_path)
    assert folder.quantization is None
    assert len(folder.mapped) == shards
    assert folder.nbytes == sum(tensor.nbytes for tensor in state.values())
    for name, tensor in state.items():
        assert folder.tensor(name).equal(tensor)
        linear = folder.linear(name.removesuffix(".weight"))
        assert isinstance(linear, Tensor)
        assert linear.equal(tensor)
    with pytest.raises(KeyError):
        folder.tensor("model.layers.9.input_layernorm.weight")


def test_transformers_fused_experts_are_views(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    state = folders.random_state(config)
    fused = {name: tensor for name, tensor in state.items() if "block_sparse_moe" not in name}
    for i in range(2):
        old, new = f"model.layers.{i}.block_sparse_moe", f"model.layers.{i}.mlp"
        fused[f"{new}.gate.weight"] = state[f"{old}.gate.weight"]
        experts = [[state[f"{old}.experts.{e}.{w}.weight"] for w in ("w1", "w3", "w2")] for e in range(4)]
        fused[f"{new}.experts.gate_up_proj"] = torch.stack([torch.cat((w1, w3)) for w1, w3, _ in experts])
        fused[f"{new}.experts.down_proj"] = torch.stack([w2 for _, _, w2 in experts])
    folders.write_folder(tmp_path, config, fused, shards=3)
    folder = ModelFolder.open(tmp_path)
    for name, tensor in state.items():
        assert folder.tensor(name).equal(tensor), name
    w1, w3 = folder.tensor(f"{EXPERT}.w1.weight"), folder.tensor(f"{EXPERT}.w3.weight")
    assert w3.data_ptr() - w1.data_ptr() == w1.nbytes  # views of one mapping
    assert w1.is_contiguous()
    with pytest.raises(KeyError):
        folder.tensor("model.layers.0.mlp.experts.gate_up_proj")


@pytest.mark.parametrize("kind", ["Mixtral", "Mistral", "Llama"])
def test_what_transformers_saves_is_opened(kind: str, tmp_path: Path, folders: SimpleNamespace) -> None:
    transformers = pytest.importorskip("transformers")
    config = folders.tiny_config(architectures=[f"{kind}ForCausalLM"], model_type=kind.lower())
    model_config = getattr(transformers, f"{kind}Config").from_dict(config)
    model = getattr(transformers, f"{kind}ForCausalLM")(model_config).bfloat16()
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    folder = ModelFolder.open(tmp_path)
    assert folder.config.rope_theta == 1e6
    assert len(folder.mapped) > 1
    assert folder.nbytes == sum(p.nbytes for p in model.parameters())
    if kind == "Mixtral":
        experts = model.model.layers[1].mlp.experts
        assert folder.tensor(f"{EXPERT}.w2.weight").equal(experts.down_proj[3])
        assert folder.tensor(f"{EXPERT}.w3.weight").equal(experts.gate_up_proj[3, 256:])


def test_an_own_folder_gives_the_packed_linears_back(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    state = folders.random_state(config)
    table = tuple(range(-120, 136, 16))
    packed = folders.write_folder(tmp_path, config, state, QuantizationConfig.mixq(MIX, table), shards=3)
    folder = ModelFolder.open(tmp_path)
    assert len(packed) == 2 * (4 + 12) + 1
    for module, linear in packed.items():
        read = folder.linear(module)
        assert isinstance(read, PackedLinear)
        assert (read.scheme, read.shape, read.nbytes) == (linear.scheme, linear.shape, linear.nbytes)
        assert all(read.tensors[suffix].equal(tensor) for suffix, tensor in linear.tensors.items())
        if read.table is not None:
            assert read.table.tolist() == list(table)
        with pytest.raises(KeyError):
            folder.tensor(f"{module}.weight")
    assert folder.tensor("model.layers.0.block_sparse_moe.gate.weight").equal(
        state["model.layers.0.block_sparse_moe.gate.weight"]
    )


@pytest.mark.parametrize("text", ["nl4:16", "nl4:64", "w4:32", "w4:128", "w8:64", "nf4:64"])
def test_each_scheme_through_a_folder_is_near_its_weights(text: str, tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    state = folders.random_state(config)
    folders.write_folder(tmp_path, config, state, QuantizationConfig.mixq({r".*": Scheme.parse(text)}))
    folder = ModelFolder.open(tmp_path)
    linear = folder.linear(f"{EXPERT}.w2")
    assert isinstance(linear, PackedLinear)
    weight = state[f"{EXPERT}.w2.weight"].float()
    error = (linear.dequantize() - weight).square().sum() / weight.square().sum()
    assert error < (1e-4 if text.startswith("w8") else 0.02)


def test_a_compressed_tensors_folder_of_another_tool(tmp_path: Path, folders: SimpleNamespace) -> None:
    """Everything "Linear" in w4 g128, routers and head ignored by name; extra old rotary tables lie around."""
    config = folders.tiny_config()
    ignore = ["lm_head", *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(2))]
    quantization = QuantizationConfig.compressed_tensors({"Linear": Scheme("w4", 128)}, ignore)
    packed = folders.write_folder(tmp_path, config, folders.random_state(config), quantization)
    rewrite(tmp_path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    folder = ModelFolder.open(tmp_path)
    assert isinstance(folder.linear("lm_head"), Tensor)
    read = folder.linear(f"{EXPERT}.w1")
    assert isinstance(read, PackedLinear)
    assert read.dequantize().equal(packed[f"{EXPERT}.w1"].dequantize())


def test_a_router_that_the_target_linear_includes_may_be_stored_plain(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    quantization = QuantizationConfig.compressed_tensors({"Linear": Scheme("w4", 32)}, ["lm_head"])
    folders.write_folder(tmp_path, config, folders.random_state(config), quantization)
    assert ModelFolder.open(tmp_path).tensor("model.layers.0.block_sparse_moe.gate.weight").shape == (4, 128)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_a_bitsandbytes_folder_as_transformers_4_saved_them(
    nested: bool, storage: torch.dtype, tmp_path: Path, folders: SimpleNamespace
) -> None:
    """Mixtral on the hub in nf4: everything but the head, the routers too, under per-expert names."""
    functional = pytest.importorskip("bitsandbytes.functional")
    config = folders.tiny_config()
    stored: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    for name, tensor in folders.random_state(config).items():
        stored[name] = tensor
        if "block_sparse_moe" in name or "self_attn" in name:
            stored[name], state = functional.quantize_4bit(
                tensor, compress_statistics=nested, quant_type="nf4", quant_storage=storage
            )
            stored.update({f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()})
            state.dtype = torch.float32
            dense[name] = functional.dequantize_4bit(stored[name], state)
    raw = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": raw}), encoding="utf-8")
    folders.write_shards(tmp_path, stored, 3)
    folder = ModelFolder.open(tmp_path)
    for name, weight in dense.items():
        linear = folder.linear(name.removesuffix(".weight"))
        assert isinstance(linear, PackedLinear)
        assert linear.dequantize().equal(weight)
    router = "model.layers.1.block_sparse_moe.gate.weight"
    assert folder.tensor(router).equal(dense[router])  # unpacked: the network wants it as it is
    assert isinstance(folder.linear("lm_head"), Tensor)


def test_tokenizer_and_generation_config(unquantized: Path) -> None:
    folder = ModelFolder.open(unquantized)
    assert folder.tokenizer_path is None
    assert folder.generation_config == {}
    assert folder.eos_token_ids == (2,)
    (unquantized / "tokenizer.model").write_bytes(b"x")
    (unquantized / "generation_config.json").write_text('{"eos_token_id": [2, 7]}', encoding="utf-8")
    (unquantized / "tokenizer.json").write_bytes(b"{}")
    folder = ModelFolder.open(unquantized)
    assert folder.tokenizer_path == unquantized / "tokenizer.model"
    assert folder.eos_token_ids == (2, 7)
    (unquantized / "tokenizer.model").unlink()
    assert ModelFolder.open(unquantized).tokenizer_path == unquantized / "tokenizer.json"


@pytest.mark.parametrize("value", ["[]", '"2"', "-1", "true", "96", "[2, null]", "1.0"])
def test_a_bad_end_token_in_generation_config(value: str, unquantized: Path) -> None:
    (unquantized / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}', encoding="utf-8")
    with pytest.raises(ModelFileError, match=r"generation_config\.json"):
        ModelFolder.open(unquantized)


def test_tied_embeddings_need_no_head(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config(tie_word_embeddings=True)
    folders.write_folder(tmp_path, config, folders.random_state(config))
    ModelFolder.open(tmp_path)
    rewrite(tmp_path, {"lm_head.weight": torch.zeros(96, 128)})  # some files repeat it
    ModelFolder.open(tmp_path)


def test_no_folder_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="is not a folder"):
        ModelFolder.open(tmp_path / "none")
    with pytest.raises(ModelFileError, match=r"has no config\.json"):
        ModelFolder.open(tmp_path)
    (tmp_path / "job.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFileError) as caught:
        ModelFolder.open(tmp_path)
    assert "did not finish" in str(caught.value.hint)


BAD_CONFIGS: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "a list": b"[]",
    "not UTF-8": b"\xff\xfe{",
    "deep": b'{"a":' * 100_000,
    "a key twice": b'{"hidden_size":128,"hidden_size":4096}',
    "too large": b" " * ((1 << 20) + 1),
    "another architecture": {"architectures": ["Qwen3MoeForCausalLM"]},
    "code of its own": {"architectures": ["\x1b[2JEvil"], "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    "one layer more": {"num_hidden_layers": 3},
    "one layer less": {"num_hidden_layers": 1},
    "one expert more": {"num_local_experts": 5},
    "one expert less": {"num_local_experts": 3},
    "a wider model": {"hidden_size": 256, "head_dim": 32},
    "another vocabulary": {"vocab_size": 97},
    "other kv heads": {"num_key_value_heads": 4},
    "negative layers": {"num_hidden_layers": -1},
    "a million layers": {"num_hidden_layers": 1_000_000},
    "no hidden size": {"hidden_size": None},
    "quantized, it says": {"quantization_config": {"quant_method": "mixq", "version": 1, "schemes": {
        ".*": {"scheme": "nl4", "group_size": 32}}}},
    "gptq, it says": {"quantization_config": {"quant_method": "gptq"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_CONFIGS)
def test_a_config_that_does_not_fit_the_weights(kind: str, unquantized: Path) -> None:
    bad = BAD_CONFIGS[kind]
    path = unquantized / "config.json"
    if isinstance(bad, dict):
        bad = json.dumps({**json.loads(path.read_bytes()), **bad}).encode()
    path.write_bytes(bad)
    with pytest.raises(ModelFileError) as caught:
        ModelFolder.open(unquantized)
    assert caught.value.message.isprintable()


def test_a_missing_tensor_is_named(unquantized: Path) -> None:
    rewrite(unquantized, {f"{EXPERT}.w2.weight": None})
    with pytest.raises(ModelFileError, match=r"experts\.3\.w2\.weight' is missing"):
        ModelFolder.open(unquantized)


def test_a_missing_head_is_named(unquantized: Path) -> None:
    rewrite(unquantized, {"lm_head.weight": None})
    with pytest.raises(ModelFileError, match=r"lm_head\.weight' is missing"):
        ModelFolder.open(unquantized)


def test_a_wrong_shape_is_named_with_both(unquantized: Path) -> None:
    rewrite(unquantized, {f"{EXPERT}.w2.weight": torch.zeros(256, 128)})
    with pytest.raises(ModelFileError, match=r"w2\.weight' has shape \[256, 128\]; config\.json asks for \[128, 256\]"):
        ModelFolder.open(unquantized)


def test_a_wrong_dtype_is_named_with_the_allowed(unquantized: Path) -> None:
    rewrite(unquantized, {"model.norm.weight": torch.zeros(128, dtype=torch.int8)})
    with pytest.raises(ModelFileError, match=r"model\.norm\.weight' is int8; it must be bfloat16, float16, float32"):
        ModelFolder.open(unquantized)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight", "extra", "lm_head.bias"]
)
def test_a_tensor_that_belongs_to_nothing_is_named(name: str, unquantized: Path) -> None:
    rewrite(unquantized, {name: torch.zeros(4)})
    with pytest.raises(ModelFileError, match="is not part of a MixtralForCausalLM"):
        ModelFolder.open(unquantized)


DAMAGE: dict[str, dict[str, Tensor | None]] = {
    "codes missing": {f"{EXPERT}.w1.weight_codes": None},
    "scales missing": {f"{EXPERT}.w1.weight_scale": None},
    "row scales missing": {f"{EXPERT}.w1.weight_row_scale": None},
    "half the codes": {f"{EXPERT}.w1.weight_codes": torch.zeros(256, 32, dtype=torch.uint8)},
    "codes as int8": {f"{EXPERT}.w1.weight_codes": torch.zeros(256, 64, dtype=torch.int8)},
    "scales of groups of 16": {f"{EXPERT}.w1.weight_scale": torch.zeros(256, 8, dtype=torch.int8)},
    "row scales in bf16": {f"{EXPERT}.w1.weight_row_scale": torch.zeros(256, dtype=torch.bfloat16)},
    "the weight as well": {f"{EXPERT}.w1.weight": torch.zeros(256, 128)},
    "packed missing": {"lm_head.weight_packed": None},
    "scales in float32": {"lm_head.weight_scale": torch.zeros(96, 1)},
    "shape missing": {"lm_head.weight_shape": None},
    "shape as int32": {"lm_head.weight_shape": torch.tensor([96, 128], dtype=torch.int32)},
    "another shape": {"lm_head.weight_shape": torch.tensor([128, 96])},
    "a zero point": {"lm_head.weight_zero_point": torch.zeros(24, 1, dtype=torch.int32)},
    "an activation order": {"lm_head.weight_g_idx": torch.zeros(128, dtype=torch.int32)},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_packed_linear_is_refused(kind: str, own: Path) -> None:
    ModelFolder.open(own)
    rewrite(own, DAMAGE[kind])
    with pytest.raises(ModelFileError, match=r"lm_head|experts\.3\.w1"):
        ModelFolder.open(own)


def test_a_group_that_does_not_divide_is_refused(tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config(intermediate_size=192)
    folders.write_folder(tmp_path, config, folders.random_state(config))
    config["quantization_config"] = QuantizationConfig.mixq({r".*w2": Scheme("w8", 128)}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelFileError, match="192 inputs are not a multiple"):
        ModelFolder.open(tmp_path)


@pytest.mark.parametrize("change", ["nf4 of another shape", "other blocks", "no state", "no absmax"])
def test_a_damaged_nf4_linear_is_refused(change: str, tmp_path: Path, folders: SimpleNamespace) -> None:
    config = folders.tiny_config()
    quantization = QuantizationConfig.mixq({"lm_head": Scheme("nf4", 64)})
    folders.write_folder(tmp_path, config, folders.random_state(config), quantization)
    ModelFolder.open(tmp_path)
    if change == "no state":
        rewrite(tmp_path, {f"lm_head.{nf4.STATE}": None})
    elif change == "no absmax":
        rewrite(tmp_path, {"lm_head.weight.absmax": None})
    else:
        shape, blocks = ((128, 96), 64) if change == "nf4 of another shape" else ((96, 128), 128)
        tensors = nf4.quantize(torch.ones(shape), blocks, torch.bfloat16)
        rewrite(tmp_path, {f"lm_head.{suffix}": tensor for suffix, tensor in tensors.items()})
    with pytest.raises(ModelFileError, match="lm_head"):
        ModelFolder.open(tmp_path)


def test_compressed_tensors_targets_written_by_us_leave_router_and_head(
    tmp_path: Path, folders: SimpleNamespace
) -> None:
    config = folders.tiny_config()
    quantization = QuantizationConfig.compressed_tensors(
        {EXPERTS_TARGET: Scheme("w4", 32), ATTENTION_TARGET: Scheme("w8", 128)}
    )
    packed = folders.write_folder(tmp_path, config, folders.random_state(config), quantization)
    kinds = {"experts" if "experts" in module else "attention": linear.scheme for module, linear in packed.items()}
    assert kinds == {"experts": Scheme("w4", 32), "attention": Scheme("w8", 128)}
    folder = ModelFolder.open(tmp_path)
    assert isinstance(folder.linear("lm_head"), Tensor)
    assert isinstance(folder.linear("model.layers.0.block_sparse_moe.gate"), Tensor)
