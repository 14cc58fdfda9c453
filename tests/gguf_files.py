"""GGUF files of tiny models, written by llama.cpp's own package and under the names that its converter gives.

Nothing here is shared with the reader: names, metadata and the order of q's and k's rows follow convert_hf_to_gguf
(LlamaModel), the names of single experts the converter of December 2023.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType, TokenType
from numpy.typing import NDArray
from torch import Tensor

from tests.checkpoints import write_tiny_mixtral

DEMO_TOKENIZER = Path(__file__).parents[1] / "models" / "demo" / "tokenizer.model"
Bytes = NDArray[np.uint8]
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_EXPERT = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up"}


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    raw_config: Mapping[str, Any],
    *,
    types: str | Mapping[str, str] = "BF16",
    old_names: bool = False,
    parts: int = 1,
    tokenizer: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    further: Mapping[str, tuple[NDArray[Any], Type | None]] | None = None,
) -> dict[str, Tensor]:
    """Write a model and return the weights that its file holds, by Hugging Face's names.

    Args:
        path: the file; of several parts, NAME.gguf for NAME-00001-of-0000N.gguf and on.
        tensors: by Hugging Face's per-expert names.
        raw_config: its config.json.
        types: of the matrices; or by what follows "blk.N." in llama.cpp's names ("ffn_down", "output"), "" for the
            others. Norms and routers are F32. Types that the package cannot quantize get random blocks.
        old_names: a tensor for each expert, as before April 2024.
        parts: how many files.
        tokenizer: a tokenizer.model to put in.
        metadata: further or other keys; None takes one away.
        further: tensors by llama.cpp's name, as `GGUFWriter.add_tensor` takes them.
    """
    values = _metadata(raw_config) | (_tokenizer(tokenizer) if tokenizer else {}) | dict(metadata or {})
    by_kind = {"": types} if isinstance(types, str) else types
    stored: dict[str, tuple[NDArray[Any], Type | None]] = {}
    merged: dict[str, list[Bytes]] = {}
    expected: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own, expert = _name(name)
        kind = re.sub(r"^blk\.\d+\.|\.weight$", "", own)
        plain = tensor.ndim == 1 or kind == "ffn_gate_inp"
        type = "F32" if plain else by_kind.get(kind, by_kind.get("", "BF16"))
        rows = _rows(tensor, type)
        expected[name] = _weights(rows, type).reshape(tensor.shape)
        heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(kind)
        if heads is not None:
            count = raw_config[heads]
            rows = rows.reshape(count, 2, len(rows) // count // 2, -1).swapaxes(1, 2).reshape(rows.shape)
        number = Type[type]
        if expert is None:
            stored[own] = (rows[0] if tensor.ndim == 1 else rows, number)
        elif old_names:
            stored[own.replace(".weight", f".{expert}.weight")] = (rows, number)
        else:
            name = own.replace(".weight", "_exps.weight")
            merged.setdefault(name, []).append(rows)
            stored[name] = (np.stack(merged[name]), number)
    stored |= dict(further or {})
    names = list(stored)
    for i in range(parts):
        at = path if parts == 1 else path.with_name(f"{path.stem}-{i + 1:05d}-of-{parts:05d}.gguf")
        own_values = values if i == 0 else {}
        split = {} if parts == 1 else {"split.no": i, "split.count": parts, "split.tensors.count": len(names)}
        _write(at, own_values | split, {name: stored[name] for name in names[i::parts]})
    return expected


def _write(path: Path, values: Mapping[str, Any], stored: Mapping[str, tuple[NDArray[Any], Type | None]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, str(values.get("general.architecture")))
    writer.kv_data[0].clear()
    writer.data_alignment = values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    for key, value in values.items():
        if value is not None:
            writer.add_key_value(key, value, _kind(value), *([_kind(value[0])] if isinstance(value, list) else []))
    for name, (data, type) in stored.items():
        writer.add_tensor(name, data, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(value: Any) -> GGUFValueType:
    kinds = {
        bool: GGUFValueType.BOOL,
        int: GGUFValueType.UINT32,
        float: GGUFValueType.FLOAT32,
        str: GGUFValueType.STRING,
        bytes: GGUFValueType.STRING,
        list: GGUFValueType.ARRAY,
    }
    return kinds[type(value)]


def _name(name: str) -> tuple[str, int | None]:
    """Return llama.cpp's name of a tensor, and the expert that it belongs to."""
    if name in _NAMES:
        return _NAMES[name], None
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    assert found is not None, name
    layer, module = found.groups()
    if expert := re.fullmatch(r"block_sparse_moe\.experts\.(\d+)\.(w[123])", module):
        return f"blk.{layer}.{_EXPERT[expert[2]]}.weight", int(expert[1])
    return f"blk.{layer}.{_IN_LAYER[module]}.weight", None


def _rows(tensor: Tensor, type: str) -> Bytes:
    """Return a tensor as uint8 [N, bytes of a row]; a vector is one row."""
    matrix = tensor.reshape(-1, tensor.shape[-1])
    if type in PLAIN:
        return matrix.to(PLAIN[type]).contiguous().view(torch.uint8).numpy()
    try:
        return gguf.quants.quantize(matrix.float().numpy(), Type[type])
    except NotImplementedError:
        size = gguf.quant_shape_to_byte_shape(tuple(matrix.shape), Type[type])
        # Whichever bytes are float16 scales: without the two highest bits they are below 2.
        return np.random.default_rng(0).integers(0, 64, size, dtype=np.uint8)


def _weights(rows: Bytes, type: str) -> Tensor:
    if type in PLAIN:
        return torch.from_numpy(rows.copy()).view(PLAIN[type])
    return torch.from_numpy(gguf.quants.dequantize(rows, Type[type]))


def _metadata(raw: Mapping[str, Any]) -> dict[str, Any]:
    heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
    head_dim = raw.get("head_dim", hidden // heads)
    values = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": raw["num_hidden_layers"],
        "llama.context_length": raw["max_position_embeddings"],
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": raw["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": raw["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(raw["rms_norm_eps"]),
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": float(raw["rope_theta"]),
        "llama.vocab_size": raw["vocab_size"],
    }
    if head_dim * heads != hidden:
        values |= {"llama.attention.key_length": head_dim, "llama.attention.value_length": head_dim}
    if "num_local_experts" in raw:
        values["llama.expert_count"] = raw["num_local_experts"]
        values["llama.expert_used_count"] = raw["num_experts_per_tok"]
    return values


def _tokenizer(path: Path) -> dict[str, Any]:
    """Return what llama.cpp's converter writes of a tokenizer.model (_create_vocab_sentencepiece)."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    types = []
    for i in range(pieces.vocab_size()):
        marks = {
            TokenType.UNKNOWN: pieces.is_unknown(i),
            TokenType.CONTROL: pieces.is_control(i),
            TokenType.UNUSED: pieces.is_unused(i),
            TokenType.BYTE: pieces.is_byte(i),
        }
        types.append(int(next((kind for kind, is_so in marks.items() if is_so), TokenType.NORMAL)))
    ids = range(pieces.vocab_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i).encode() for i in ids],
        "tokenizer.ggml.scores": [float(pieces.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
    }


def raw_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def write_with_tokenizer(folder: Path, vocab: int = 1536, **metadata: Any) -> Path:
    """Write a GGUF file with the demo model's tokenizer; `metadata` by what follows "tokenizer.ggml."."""
    tensors = write_tiny_mixtral(folder / "hf", hidden=32, ffn=32, layers=1, experts=2, vocab=vocab, tokenizer=False)
    changes = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    write_gguf(folder / "m.gguf", tensors, raw_config(folder / "hf"), tokenizer=DEMO_TOKENIZER, metadata=changes)
    return folder / "m.gguf"
