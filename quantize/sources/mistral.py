"""Releases in Mistral AI's format, as a source: params.json with consolidated weights.

Contract: reads two layouts. The one of mistral-inference and of the torrents (consolidated.00.pth or
consolidated.safetensors) names each expert, `layers.L.feed_forward.experts.E.w1.weight`. The eight-part
consolidated.{00..07}.pt of the first upload to the hub stack them: `layers.L.block_sparse_moe.w1` is [E * F, D], and so
is w2, each expert's part transposed. In both the rows of q and k are in pairs, as Mistral's rotary embedding rotates
them; Hugging Face's rotates the first half of a head against the second, so the rows are permuted (transformers,
convert_mistral_weights_to_hf.py and convert_mixtral_weights_to_hf.py). If params.json has no rope_theta, it is 1e6
for a model with experts and 1e4 for a dense one, as in the released models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixq.errors import ModelFileError, printable
from mixq.formats.architecture import Parameter, parameters
from mixq.formats.json_file import parse_json_object
from mixq.formats.layout import FLOAT_DTYPES
from mixq.formats.weights import StoredTensors
from mixq.quantize.gguf_format import pairs_to_halves, rotated_heads
from mixq.quantize.sources.place import Place
from mixq.quantize.sources.source import StoredSource

PARAMS = "params.json"
TOKENIZER = "tokenizer.model"
NAMED_TOKENIZERS = ("tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3")
"""Names of the sentencepiece model in newer releases."""

COMPUTED = ("rope.freqs", "freqs_cis")
"""Tensors of old files that newer programs compute instead."""

_ATTENTION = {"q": "wq", "k": "wk", "v": "wv", "o": "wo"}
_DENSE = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a parameter is stored: a tensor, its rows if only some, and how they are rearranged.

    `shape` is that of the whole stored tensor. `heads` is the number of heads whose rows are permuted, 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    transposed: bool = False
    heads: int = 0


class MistralSource(StoredSource):
    """A release with Mistral's names; `files` hold the tensors.

    Raises:
        ModelFileError: a tensor or a field is missing, has another shape or dtype, or does not belong to the model.
    """

    def __init__(self, place: Place, stored: StoredTensors, files: Sequence[str]) -> None:
        raw = config_of(parse_json_object(place.read(PARAMS), PARAMS))
        embedding = stored.entry("tok_embeddings.weight")
        if embedding is not None and embedding.dtype in FLOAT_DTYPES:
            raw["torch_dtype"] = str(embedding.dtype).removeprefix("torch.")
        super().__init__(place, stored, (PARAMS, *files), raw)
        self._parts = {parameter.name: self._find(parameter) for parameter in parameters(self.config)}
        for part in self._parts.values():
            self._expect(part.name, FLOAT_DTYPES, part.shape)
        self._refuse_others({part.name for part in self._parts.values()} | set(COMPUTED))

    def tensor(self, name: str) -> Tensor:
        part = self._parts[name]
        tensor = self._stored.tensor(part.name) if part.rows is None else self._stored.rows(part.name, *part.rows)
        if part.transposed:
            tensor = tensor.T
        return pairs_to_halves(tensor, part.heads) if part.heads else tensor

    def side_files(self) -> dict[str, bytes]:
        found = super().side_files()
        for name in NAMED_TOKENIZERS:
            if TOKENIZER not in found and name in self._place.files:
                found[TOKENIZER] = self._place.read(name)
        return found

    def _find(self, parameter: Parameter) -> _Stored:
        """Return the stored tensor that a parameter must be in."""
        config, shape = self.config, parameter.shape
        outside = {"embedding": "tok_embeddings", "lm_head": "output", "norm": "norm"}
        if parameter.layer is None:
            return _Stored(f"{outside[parameter.role]}.weight", shape)
        prefix, last = f"layers.{parameter.layer}", parameter.module.rsplit(".", 1)[-1]
        if parameter.role in _ATTENTION:
            name = f"{prefix}.attention.{_ATTENTION[parameter.role]}.weight"
            return _Stored(name, shape, heads=rotated_heads(parameter, config))
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


def config_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config.json for a params.json; both of its spellings are read.

    Raises:
        ModelFileError: a field is missing.
    """

    def field(*names: str, default: Any = ...) -> Any:
        for name in names:
            if params.get(name) is not None:
                return params[name]
        if default is ...:
            raise ModelFileError(
                f"{PARAMS} has no {names[0]}.", hint="Download the file again, from the repository of the weights."
            )
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
