"""A checked PEFT adapter: which of its tensors change which parameters, and how.

Contract: `Adapter` reads and checks adapter_config.json and the header of adapter_model.safetensors: every tensor must
belong to a parameter of the model and have the right shape, every LoRA must be a pair, and anything that cannot be
merged as W + scale * B @ A is refused by name. Weights are not read.

Names as PEFT writes them (its checkpoint format: https://huggingface.co/docs/peft/developer_guides/checkpoint):
`base_model.model.MODULE.lora_A.weight`, with the adapter's name in between in older and in unstripped files,
`lora_embedding_A` for an embedding, and `base_model.model.MODULE.weight` for what was trained in full. Of transformers
5's fused experts (target_parameters) one A [r * E, K] and one B [N, r * E] hold the pairs of all E experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mixq.config import ModelConfig
from mixq.errors import Fields, ModelFileError, UsageError, did_you_mean, printable
from mixq.formats.architecture import LINEAR_ROLES, Parameter, parameters
from mixq.formats.json_file import read_json_object
from mixq.formats.layout import FLOAT_DTYPES
from mixq.formats.shards import ShardSet
from mixq.formats.weights import StoredTensors

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_RANK = 1 << 16
HAS_LORA = (*LINEAR_ROLES, "router", "embedding")

CHANGES_THE_FORMULA = {
    "use_dora": "DoRA, which rescales every row",
    "use_qalora": "QA-LoRA, which pools the inputs",
    "lora_bias": "a bias for B, which these models do not have",
    "alora_invocation_tokens": "an activated LoRA, which starts at a certain token",
    "layer_replication": "layers that are repeated",
    "trainable_token_indices": "single tokens of the embedding (trainable_token_indices)",
    "use_bdlora": "block-diagonal LoRA",
    "arrow_config": "a router of several adapters (Arrow)",
    "kasa_config": "KaSA, which scales the ranks",
    "monteclora_config": "MonteCLoRA",
}
"""Fields of LoraConfig that change W + scale * B @ A if they are set."""

CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Values of init_lora_weights for which training starts from other base weights than the checkpoint's."""

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.(?!weight$)[\w-]+)?(\.weight)?")
_WHOLE = re.compile(r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.(?!weight$)[\w-]+)?)?\.weight")
_FUSED = re.compile(r"(?P<experts>(?P<layer>(model\.)?layers\.\d+)\.mlp\.experts)(\.base_layer)?")
_V5_EXPERT = re.compile(r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj")
_V5_ROUTER = re.compile(r"(model\.layers\.\d+)\.mlp\.gate")
_MATRIX = {"gate": "w1", "down": "w2", "up": "w3"}
_SLOW = re.compile(r"\)[*+?{]|([*+{].*){5}")
"""In a pattern: a repeated group, or five repetitions, for which re may need exponential time."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """An addition to one parameter: scale * B @ A."""

    # a, b: the tensors' names
    a: str
    b: str
    scale: float
    transposed: bool = False  # B @ A is transposed, as for an embedding
    # number of the expert, and how many share the tensors; None if nothing is shared
    expert: tuple[int, int] | None = None
    rows: slice | None = None  # of B that belong to the parameter; None if all do

    def factors(self, tensors: StoredTensors) -> tuple[Tensor, Tensor]:
        """Return B [N, r] and A [r, K], as views."""
        A, B = tensors.tensor(self.a), tensors.tensor(self.b)
        if self.rows is not None:
            B = B[self.rows]
        if self.expert is not None:
            number, E = self.expert
            return B.view(len(B), -1, E)[:, :, number], A.view(E, -1, A.shape[-1])[number]
        return (A.t(), B.t()) if self.transposed else (B, A)


@dataclass(slots=True)
class _Pair:
    """A LoRA of one module while its tensors are gathered; `named` is the module as the adapter spells it.

    `parameter` is None for fused experts.
    """

    parameter: Parameter | None
    named: str
    sides: dict[str, str]


class Adapter:
    """A checked adapter.

    Args:
        path: its folder.
        config: of the model into which it is merged.

    Attributes:
        low_rank: the additions, by parameter name.
        replaced: the adapter's tensor, by the name of the parameter that it replaces.

    Raises:
        ModelFileError: not an adapter, damaged, not for this model, or of a kind that cannot be merged.
        UsageError: its weights are pickled.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        self.path = path
        self.low_rank: dict[str, LowRank] = {}
        self.replaced: dict[str, str] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        if not path.is_dir():
            raise ModelFileError(f"the adapter {printable(path)} is not a folder.", hint=f"Use a folder with {CONFIG}.")
        raw = self._raw = read_json_object(path / CONFIG)
        self._refuse_other_kinds(raw)
        self.rank, self.alpha = self._rank(raw.get("r"), "r"), self._alpha(raw.get("lora_alpha"), "lora_alpha")
        self._rank_pattern, self._alpha_pattern = self._patterns("rank_pattern"), self._patterns("alpha_pattern")
        if not (path / WEIGHTS).exists() and (path / PICKLED).exists():
            raise UsageError(
                f"the adapter {self.name} has its weights in {PICKLED}, a pickled file, which can contain programs.",
                hint="Load it with peft and save it again: save_pretrained writes safetensors.",
            )
        self.tensors = ShardSet.of_files(path, [WEIGHTS])
        self._config = config
        self._known = {parameter.module: parameter for parameter in parameters(config)}
        self._match()

    @property
    def name(self) -> str:
        """The folder's name, escaped."""
        return printable(self.path.resolve().name)

    @property
    def files(self) -> tuple[Path, Path]:
        """Its files."""
        return self.path / CONFIG, self.path / WEIGHTS

    def _error(self, text: str, hint: str | None = None) -> ModelFileError:
        return ModelFileError(f"the adapter {self.name}: {text}", hint=hint)

    def _refuse_other_kinds(self, raw: Mapping[str, Any]) -> None:
        kind = raw.get("peft_type")
        if kind != "LORA":
            raise self._error(f"peft_type is {printable(repr(kind))}; only 'LORA' can be merged.")
        for field, what in CHANGES_THE_FORMULA.items():
            if raw.get(field):
                raise self._error(f"{field} is set: this is {what}. mixq cannot merge it.", _MERGE_WITH_PEFT)
        if raw.get("bias", "none") != "none":
            raise self._error(
                f"bias is {printable(repr(raw['bias']))}; it must be 'none', as these models have no biases."
            )
        begun = raw.get("init_lora_weights")
        if isinstance(begun, str) and begun.lower().startswith(CHANGES_THE_BASE):
            raise self._error(
                f"init_lora_weights is {printable(repr(begun))}: it was trained with other base weights than the "
                "checkpoint's.",
                "peft converts it: save_pretrained(..., path_initial_model_for_weight_conversion=...).",
            )

    def _rank(self, value: object, field: str) -> int:
        return Fields({field: value}, error=self._error).integer(field, 1, MAX_RANK)

    def _alpha(self, value: object, field: str) -> float:
        return Fields({field: value}, error=self._error).number(field, -1e9, 1e9)

    def _patterns(self, field: str) -> list[tuple[re.Pattern[str], float]]:
        """Return rank_pattern or alpha_pattern, whose keys are regular expressions of the ends of modules' names."""
        raw = self._raw.get(field) or {}
        if not isinstance(raw, dict) or len(raw) > 4096:
            raise self._error(f"{field} must be an object of at most 4,096 entries.")
        check = self._rank if field == "rank_pattern" else self._alpha
        found = []
        for key, value in raw.items():
            try:
                if len(key) > 256 or _SLOW.search(key):
                    raise re.error("too complex")
                pattern = re.compile(rf"(.*\.)?({key})$")
            except (re.error, OverflowError, RecursionError):
                raise self._error(f"{field}: {printable(repr(key))} is not a pattern that mixq evaluates.") from None
            found.append((pattern, check(value, f"{field}: {printable(key)}")))
        return found

    def _match(self) -> None:
        """Assign every tensor."""
        pairs: dict[str, _Pair] = {}
        for name in sorted(self.tensors.names):
            entry = self.tensors.entry(name)
            assert entry is not None
            self._shapes[name] = entry.shape
            if name.endswith("lora_magnitude_vector") or ".lora_magnitude_vector." in name:
                raise self._error(f"tensor {name!r}: this is DoRA, which mixq cannot merge.", _MERGE_WITH_PEFT)
            if entry.dtype not in FLOAT_DTYPES:
                allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
                raise self._error(f"tensor {name!r} is {str(entry.dtype).removeprefix('torch.')}, not {allowed}.")
            if match := _LORA.fullmatch(name):
                self._gather(pairs, name, match)
            elif (match := _WHOLE.fullmatch(name)) and (parameter := self._parameter(match["module"])):
                self._replace(name, parameter)
            else:
                raise self._foreign(name)
        for pair in pairs.values():
            for changed, low_rank in self._merges(pair):
                if changed in self.low_rank:
                    raise self._error(f"{self.low_rank[changed].a!r} and {low_rank.a!r} both change {changed}.")
                self.low_rank[changed] = low_rank
        if not self.low_rank and not self.replaced:
            raise self._error("it has no tensors.")

    def _gather(self, pairs: dict[str, _Pair], name: str, match: re.Match[str]) -> None:
        parameter, embedding = self._parameter(match["module"]), bool(match["embedding"])
        named = match["module"].removeprefix("base_model.model.")
        if parameter is None:
            if embedding or not self._config.is_moe or not _FUSED.fullmatch(named):
                raise self._foreign(name)
        elif parameter.role not in HAS_LORA or embedding != (parameter.role == "embedding"):
            raise self._foreign(name)
        elif embedding and self._config.tie_word_embeddings:
            raise self._error(
                f"tensor {name!r}: the model ties lm_head to the embedding, so a LoRA of one would change both."
            )
        pair = pairs.setdefault(named if parameter is None else parameter.name, _Pair(parameter, named, {}))
        if match["side"] in pair.sides:
            raise self._error(f"{pair.sides[match['side']]!r} and {name!r} are the same tensor of two adapters.")
        pair.sides[match["side"]] = name

    def _replace(self, name: str, parameter: Parameter) -> None:
        shape = self._shapes[name]
        if parameter.name in self.replaced:
            raise self._error(f"{self.replaced[parameter.name]!r} and {name!r} both replace {parameter.name}.")
        if shape != parameter.shape:
            resized = shape[1:] == parameter.shape[1:] and parameter.role in ("embedding", "lm_head")
            raise self._error(
                f"tensor {name!r} has shape {list(shape)}; the model's is {list(parameter.shape)}."
                + (" Its vocabulary was resized, and the model's is not." if resized else "")
            )
        self.replaced[parameter.name] = name

    def _merges(self, pair: _Pair) -> Iterator[tuple[str, LowRank]]:
        """Yield the parameters that a pair changes, and how."""
        for side, other in (("A", "B"), ("B", "A")):
            if side not in pair.sides:
                raise self._error(f"tensor {pair.sides[other]!r} has no lora_{side} beside it.")
        a, b = pair.sides["A"], pair.sides["B"]
        if pair.parameter is not None:
            embedding = pair.parameter.role == "embedding"
            N, K = reversed(pair.parameter.shape) if embedding else pair.parameter.shape
            yield pair.parameter.name, LowRank(a, b, self._scale(pair, pair.named, N, K), embedding)
            return
        E, F, D = self._config.num_local_experts, self._config.intermediate_size, self._config.hidden_size
        fused = _FUSED.fullmatch(pair.named)
        assert fused is not None
        down = self._shapes[a][-1:] == (F,) and (F != D or self._shapes[b][:1] == (D,))
        shape, matrices = ((D, F), {"w2": None}) if down else ((2 * F, D), {"w1": slice(0, F), "w3": slice(F, 2 * F)})
        named = f"{fused['experts']}.{'down_proj' if down else 'gate_up_proj'}"
        scale = self._scale(pair, named, *shape, experts=E)
        layer = fused["layer"] if fused["layer"].startswith("model.") else f"model.{fused['layer']}"
        for expert in range(E):
            for matrix, rows in matrices.items():
                name = f"{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight"
                if name.removesuffix(".weight") not in self._known:
                    raise self._foreign(a)
                yield name, LowRank(a, b, scale, expert=(expert, E), rows=rows)

    def _scale(self, pair: _Pair, named: str, N: int, K: int, experts: int = 1) -> float:
        """Return the factor of B @ A, after checking the shapes of A and B."""
        rank = int(_first_match(self._rank_pattern, named, self.rank))
        alpha = _first_match(self._alpha_pattern, named, self.alpha)
        for side, shape in (("A", (rank * experts, K)), ("B", (N, rank * experts))):
            stored = self._shapes[pair.sides[side]]
            if stored == shape:
                continue
            found = stored[side == "B"] / experts if len(stored) == 2 else rank
            raise self._error(
                f"tensor {pair.sides[side]!r} has shape {list(stored)} instead of {list(shape)}: "
                + (f"rank {found:g}, and {CONFIG} says {rank}." if found != rank else "it belongs to another model.")
            )
        return alpha / math.sqrt(rank) if self._raw.get("use_rslora") else alpha / rank

    def _parameter(self, module: str) -> Parameter | None:
        return next((self._known[name] for name in _spellings(module) if name in self._known), None)

    def _foreign(self, name: str) -> ModelFileError:
        module = re.split(r"\.(?:lora_|weight$)", name.removeprefix("base_model.model."))[0]
        return self._error(
            f"tensor {name!r} matches no linear layer of the model." + did_you_mean(module, self._known),
            "It was trained for another model, or with a method that mixq cannot merge.",
        )


_MERGE_WITH_PEFT = "Merge it with peft (merge_and_unload), save the model and quantize the result."


def _spellings(module: str) -> Iterator[str]:
    """Yield the possible checkpoint names of a module in an adapter."""
    bare = module.removeprefix("base_model.model.")
    for name in (bare, f"model.{bare}"):  # the latter from a model without a head
        yield name
        if expert := _V5_EXPERT.fullmatch(name):
            yield f"{expert[1]}.block_sparse_moe.experts.{expert[2]}.{_MATRIX[expert[3]]}"
        if router := _V5_ROUTER.fullmatch(name):
            yield f"{router[1]}.block_sparse_moe.gate"


def _first_match(patterns: list[tuple[re.Pattern[str], float]], module: str, otherwise: float) -> float:
    """Return the value of the first pattern that a module's name matches, as PEFT does."""
    return next((value for pattern, value in patterns if pattern.match(module)), otherwise)
