"""Adapters that cannot be merged: each refused by name before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mixq.errors import ModelFileError, UsageError
from mixq.quantize.sources.lora import LoraSource
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_llama, write_tiny_mixtral
from tests.quantize.sources.test_lora import EMBEDDING, PREFIX, SHAPES, W2, Q, pair, write_adapter


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_tiny_mixtral(tmp_path / "base", experts=2)
    return tmp_path / "base"


A_NAME, B_NAME = f"{PREFIX}{Q}.lora_A.weight", f"{PREFIX}{Q}.lora_B.weight"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA'"),
        ({"use_dora": True}, "use_dora is set: this is DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"layer_replication": [[0, 1]]}, "layer_replication is set: this is layers that are repeated"),
        ({"trainable_token_indices": [3]}, "single tokens of the embedding"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"r": 8}, r"q_proj\.lora_A\.weight' has shape \[4, 128\] instead of \[8, 128\]: rank 4, and .* says 8"),
        ({"rank_pattern": {"q_proj": 2}}, "rank 4, and .* says 2"),
        ({"r": 0}, "r is 0; it must be a whole number"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": "6"}, "lora_alpha is '6'; it must be a number"),
        ({"lora_alpha": 1e300}, "lora_alpha is"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern: q_proj is None"),
        ({"alpha_pattern": {"(a+)+": 1}}, "is not a pattern that mixq evaluates"),
        ({"alpha_pattern": {"(": 1}}, "is not a pattern that mixq evaluates"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ],
)
def test_configs_that_are_refused(config: dict[str, Any], named: str, base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", pair(Q, SHAPES[Q]), **config)
    with pytest.raises(ModelFileError, match=f"the adapter adapter: .*{named}") as error:
        LoraSource(open_source(base), adapter)
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({A_NAME: None}, r"q_proj\.lora_B\.weight' has no lora_A beside it"),
        ({B_NAME: None}, r"q_proj\.lora_A\.weight' has no lora_B beside it"),
        (
            {A_NAME: torch.zeros(4, 64)},
            r"lora_A\.weight' has shape \[4, 64\] instead of \[4, 128\]: it belongs to another",
        ),
        ({B_NAME: torch.zeros(128)}, r"lora_B\.weight' has shape \[128\] instead of \[128, 4\]"),
        ({B_NAME: torch.zeros(128, 5)}, r"lora_B\.weight' has shape \[128, 5\] .*rank 5, and .* says 4"),
        ({A_NAME: torch.zeros(4, 128, dtype=torch.int8)}, r"lora_A\.weight' is int8, not bfloat16"),
        ({f"{PREFIX}{Q}.lora_magnitude_vector": torch.zeros(128)}, "this is DoRA"),
        ({f"{PREFIX}{Q}.lora_A.other.weight": torch.zeros(4, 128)}, "are the same tensor of two adapters"),
        (
            {f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(4, 128)},
            "matches no linear layer.*Did you",
        ),
        ({f"{PREFIX}model.norm.lora_A.weight": torch.zeros(4, 128)}, "matches no linear layer"),
        ({f"{PREFIX}{EMBEDDING}.lora_A.weight": torch.zeros(4, 128)}, "matches no linear layer"),
        ({f"{PREFIX}{Q}.bias": torch.zeros(128)}, "matches no linear layer"),
        ({f"{PREFIX}model.layers.0.mlp.experts.lora_A.weight": torch.zeros(8, 128)}, "has no lora_B beside it"),
        ({f"{PREFIX}lm_head.weight": torch.zeros(66, 128)}, r"\[66, 128\]; the model's is \[64, 128\].*was resized"),
        ({f"{PREFIX}model.norm.weight": torch.zeros(66)}, r"norm\.weight' has shape \[66\]; the model's is \[128\]\.$"),
        (
            pair("model.layers.9.mlp.experts", (512, 128), 8),
            r"layers\.9.*matches no linear layer",
        ),
        (
            pair("model.layers.0.mlp.experts", (512, 128), 8) | pair(W2.replace("w2", "w3"), (256, 128)),
            r"both change model\.layers\.0\.block_sparse_moe\.experts\.1\.w3\.weight",
        ),
        (
            {f"{PREFIX}lm_head{end}.weight": torch.zeros(64, 128) for end in ("", ".modules_to_save")},
            r"both replace lm_head\.weight",
        ),
    ],
)
def test_tensors_that_are_refused(change: dict[str, Tensor | None], named: str, base: Path, tmp_path: Path) -> None:
    tensors = pair(Q, SHAPES[Q]) | change
    adapter = write_adapter(tmp_path / "adapter", {name: t for name, t in tensors.items() if t is not None})
    with pytest.raises(ModelFileError, match=f"the adapter adapter: .*{named}"):
        LoraSource(open_source(base), adapter)


def test_an_adapter_that_is_none(base: Path, tmp_path: Path) -> None:
    source = open_source(base)
    with pytest.raises(ModelFileError, match="is not a folder"):
        LoraSource(source, tmp_path / "nowhere")
    with pytest.raises(ModelFileError, match=r"adapter_config\.json does not exist"):
        LoraSource(source, base)
    adapter = write_adapter(tmp_path / "adapter", {})
    with pytest.raises(ModelFileError, match="it has no tensors"):
        LoraSource(source, adapter)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"adapter_model\.bin, a pickled file") as error:
        LoraSource(source, adapter)
    assert "save_pretrained" in str(error.value.hint)
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelFileError, match="shards are missing"):
        LoraSource(source, adapter)


def test_a_tied_embedding_is_not_merged_into(tmp_path: Path) -> None:
    write_tiny_llama(tmp_path / "base", tie_word_embeddings=True)
    A, B = torch.zeros(4, 64), torch.zeros(128, 4)
    names = (f"{PREFIX}{EMBEDDING}.lora_embedding_{side}" for side in "AB")
    adapter = write_adapter(tmp_path / "adapter", dict(zip(names, (A, B), strict=True)))
    with pytest.raises(ModelFileError, match="ties lm_head to the embedding"):
        LoraSource(open_source(tmp_path / "base"), adapter)
