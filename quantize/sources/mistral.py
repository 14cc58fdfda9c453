"""Mistral AI's own releases as a source: params.json with consolidated weights.

Contract: two forms are read. The one of mistral-inference and of the torrents (consolidated.00.pth or
consolidated.safetensors) names each expert, `layers.L.feed_forward.experts.E.w1.weight`. The eight-part
consolidated.{00..07}.pt of the hub's first upload stacks them: `layers.L.block_sparse_moe.w1` is [E * F, D], and so is
w2, each expert's part transposed. In both the rows of q and k stand in pairs, as Mistral's rotary embedding turns them;
Hugging Face's turns the first half of a head against the second, so the rows are permuted (transformers,
convert_mistral_weights_to_hf.py and convert_mixtral_weights_to_hf.py). Where params.json names no rope_theta, a model
with experts has 1e6 and a dense one 1e4: so the released models were trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import ModelFileError, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.json_file import parse_json_object
from mixq.formats.stored import StoredTensors
from mixq.quantize.sources.huggingface import side_files
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import Source

PARAMS = "params.json"
TOKENIZER = "tokenizer.model"
NAMED_TOKENIZERS = ("tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3")
"""What newer releases call their sentencepiece model."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
COMPUTED = ("rope.freqs", "freqs_cis")
"""Tensors that are computed, not stored, today."""

_ATTENTION = {"q": "wq", "k": "wk", "v": "wv", "o": "wo"}
_DENSE = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a parameter lies: a stored tensor, its rows if only some, and what is done to them.

    `shape` is that of the whole stored tensor. `heads` is the number of heads whose rows are permuted, 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    heads: int = 0


class MistralSource(Source):
    """A release in Mistral's own names.

    Args:
        place: where params.json and the tokenizer lie.
        stored: its tensors.
        files: the files that hold them, for the fingerprint.

    Raises:
        ModelFileError: a field or tensor that is missing, of another shape or dtype, or part of nothing.
    """

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str]) -> None:
        self._place = place
        self._stored = stored
        self._files = tuple(files)
        self._raw = config_of(parse_json_object(place.read(PARAMS), PARAMS))
        self._config = ModelConfig.from_dict(self._raw)
        self._parts = {parameter.name: self._find(parameter) for parameter in parameters(self._config)}
        self._check()
        self._raw["torch_dtype"] = str(self._dtype()).removeprefix("torch.")
        self._config = ModelConfig.from_dict(self._raw)

    @property
    def name(self) -> str:
        return self._place.name

    @property
    def path(self) -> Path | None:
        return self._place.path

    @property
    def revision(self) -> str | None:
        return self._place.revision

    @property
    def config(self) -> ModelConfig:
        return self._config

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return self._raw

    @property
    def nbytes(self) -> int:
        return self._stored.nbytes

    def tensor(self, name: str) -> Tensor:
        part = self._parts[name]
        tensor = self._stored.tensor(part.name) if part.rows is None else self._stored.rows(part.name, *part.rows)
        if part.transposed:
            tensor = tensor.T
        return permuted(tensor, part.heads) if part.heads else tensor

    def fingerprint(self) -> str:
        return self._place.fingerprint([PARAMS, *self._files])

    def side_files(self) -> dict[str, bytes]:
        found = side_files(self._place)
        for name in NAMED_TOKENIZERS:
            if TOKENIZER not in found and name in self._place.files:
                found[TOKENIZER] = self._place.read(name)
        return found

    def cancel(self) -> None:
        self._place.cancel()

    def _find(self, parameter: Parameter) -> _Stored:
        """Return where a parameter must lie."""
        config, shape = self._config, parameter.shape
        outside = {"embedding": "tok_embeddings", "lm_head": "output", "norm": "norm"}
        if parameter.layer is None:
            return _Stored(f"{outside[parameter.role]}.weight", shape)
        prefix, last = f"layers.{parameter.layer}", parameter.module.rsplit(".", 1)[-1]
        if parameter.role in _ATTENTION:
            heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(parameter.role, 0)
            return _Stored(f"{prefix}.attention.{_ATTENTION[parameter.role]}.weight", shape, heads=heads)
        if parameter.role == "norm":
            return _Stored(f"{prefix}.{'attention' if last == 'input_layernorm' else 'ffn'}_norm.weight", shape)
        stacked = f"{prefix}.block_sparse_moe"
        if parameter.role == "router":
            names = (f"{prefix}.feed_forward.gate.weight", f"{stacked}.gate.weight")
            return _Stored(next((name for name in names if self._stored.entry(name)), names[0]), shape)
        if parameter.role == "mlp":
            return _Stored(f"{prefix}.feed_forward.{_DENSE[last]}.weight", shape)
        assert parameter.expert is not None
        for name in (f"{stacked}.{last}", f"{stacked}.{last}.weight"):
            if self._stored.entry(name):
                F, D = config.intermediate_size, config.hidden_size
                rows = (parameter.expert * F, parameter.expert * F + F)
                return _Stored(name, (config.num_local_experts * F, D), rows, transposed=last == "w2")
        return _Stored(f"{prefix}.feed_forward.experts.{parameter.expert}.{last}.weight", shape)

    def _check(self) -> None:
        for part in self._parts.values():
            entry = self._stored.entry(part.name)
            if entry is None:
                raise ModelFileError(f"tensor {part.name!r} is missing.", hint="Finish the download.")
            where = printable(self._stored.file_of(part.name))
            if entry.shape != part.shape:
                raise ModelFileError(
                    f"{where}: tensor {part.name!r} has shape {list(entry.shape)}; params.json asks for "
                    f"{list(part.shape)}."
                )
            if entry.dtype not in FLOATS:
                raise ModelFileError(
                    f"{where}: tensor {part.name!r} is {str(entry.dtype).removeprefix('torch.')}; it must be "
                    "bfloat16, float16 or float32."
                )
        used = {part.name for part in self._parts.values()}
        for name in self._stored.names:
            if name not in used and name not in COMPUTED:
                raise ModelFileError(
                    f"{printable(self._stored.file_of(name))}: tensor {printable(name)!r} is not part of the model "
                    "that params.json describes."
                )

    def _dtype(self) -> torch.dtype:
        entry = self._stored.entry("tok_embeddings.weight")
        assert entry is not None, "checked"
        return entry.dtype


def permuted(weight: Tensor, heads: int) -> Tensor:
    """Return the rows of q or k [heads * d, K] in Hugging Face's order: of each head those of even number first."""
    N, K = weight.shape
    return weight.reshape(heads, N // heads // 2, 2, K).transpose(1, 2).reshape(N, K)


def config_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json that a params.json amounts to; both of its spellings are read.

    Raises:
        ModelFileError: a field that is missing.
    """

    def field(*names: str, default: Any = ...) -> Any:
        for name in names:
            if params.get(name) is not None:
                return params[name]
        if default is ...:
            raise ModelFileError(f"{PARAMS} has no {names[0]}.", hint="It belongs to the weights: download it again.")
        return default

    moe = field("moe", default={})
    if not isinstance(moe, Mapping):
        raise ModelFileError(f"{PARAMS}: moe is {printable(repr(moe))}; it must be an object.")
    experts = moe.get("num_experts", field("num_local_experts", "num_experts", default=0))
    heads = field("n_heads", "num_attention_heads")
    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if experts else "MistralForCausalLM"],
        "model_type": "mixtral" if experts else "mistral",
        "hidden_size": field("dim", "hidden_size"),
        "intermediate_size": field("hidden_dim", "intermediate_size"),
        "num_hidden_layers": field("n_layers", "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("n_kv_heads", "num_key_value_heads", default=heads),
        "vocab_size": field("vocab_size"),
        "max_position_embeddings": field("max_seq_len", "max_position_embeddings", default=32768),
        "rms_norm_eps": field("norm_eps", "rms_norm_eps", default=1e-5),
        "rope_theta": field("rope_theta", default=1e6 if experts else 1e4),
        "sliding_window": None if experts else field("sliding_window", default=None),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if field("head_dim", default=None) is not None:
        config["head_dim"] = params["head_dim"]
    if experts:
        config["num_local_experts"] = experts
        config["num_experts_per_tok"] = moe.get("num_experts_per_tok", field("num_experts_per_tok", default=2))
    return config
