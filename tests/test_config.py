"""Configurations: what is read, and what is refused by field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mixq.config import ModelConfig, RuntimeOptions, format_size, parse_size
from mixq.errors import MixqError, ModelFileError, UsageError, printable
from mixq.models.presets import PRESETS

MIXTRAL = PRESETS["mixtral-8x7b"]


def test_mixtral() -> None:
    config = ModelConfig.from_dict(MIXTRAL)
    assert (config.num_local_experts, config.num_experts_per_tok, config.head_dim) == (8, 2, 128)
    assert config.rope_theta == 1e6
    assert config.max_position_embeddings == 32768
    assert config.eos_token_ids == (2,)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
    ],
    ids=["top level", "inside rope_parameters", "both: the newer place wins"],
)
def test_rope_theta_in_either_place(fields: dict[str, Any]) -> None:
    assert ModelConfig.from_dict({**MIXTRAL, **fields}).rope_theta == 5e5


def test_rope_theta_missing_is_the_architectures_own() -> None:
    without = {k: v for k, v in MIXTRAL.items() if k != "rope_theta"}
    assert ModelConfig.from_dict(without).rope_theta == 1e6
    assert ModelConfig.from_dict({**without, "architectures": ["MistralForCausalLM"]}).rope_theta == 1e4


def test_mixtrals_stray_sliding_window_is_none_but_a_dense_models_counts() -> None:
    assert ModelConfig.from_dict({**MIXTRAL, "sliding_window": 4096}).sliding_window is None
    assert ModelConfig.from_dict({**PRESETS["mistral-7b"], "sliding_window": 4096}).sliding_window == 4096


def test_several_end_tokens_and_either_name_of_dtype() -> None:
    config = ModelConfig.from_dict({**MIXTRAL, "eos_token_id": [2, 32000], "dtype": "float32"})
    assert config.eos_token_ids == (2, 32000)
    assert config.dtype == "float32"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": ["Mixtral\x1b[31mEvil"]}, "\\x1b"),
        ({"architectures": [], "model_type": "qwen2_moe"}, "qwen2_moe"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rope_theta": "NaN"}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 127}, "head_dim"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_scaling": {"type": "yarn", "factor": 4}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_parameters"),
        ({"eos_token_id": []}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused_by_field(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFileError) as error:
        ModelConfig.from_dict({**MIXTRAL, **fields})
    assert named in error.value.message
    assert "\x1b" not in error.value.message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"device": "gpu"}, "device"),
        ({"contxt": 5}, "'context'"),
        ({"context": 0}, "context"),
        ({"threads": 0}, "threads"),
        ({"kv": "int4"}, "'int8'"),
        ({"context": "10"}, "context"),
        ({"context": 10.5}, "context"),
        ({"threads": True}, "threads"),
        ({"vram": -5}, "vram"),
        ({"vram": "9" * 400}, "is not a size"),
        ({"seed": -1}, "seed"),
        ({"vram": "8 gigs"}, "8 gigs"),
        ({"cache_policy": "lruu"}, "'lru'"),
    ],
)
def test_a_runtime_option_out_of_range_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        RuntimeOptions.from_kwargs(**options)
    assert named in error.value.message


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8GB", 8 * 10**9),
        ("512MiB", 512 * 2**20),
        ("1.5 g", 15 * 10**8),
        ("1000", 1000),
        ("2TiB", 2**41),
        ("3kb", 3000),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert parse_size(text) == count


def test_sizes_are_shown_in_decimal_units() -> None:
    assert [format_size(n) for n in (0, 999, 25_345_000_000, 10**15)] == ["0 B", "999 B", "25.3 GB", "1000.0 TB"]


def test_names_from_files_are_shown_not_obeyed() -> None:
    assert printable("a\x1b[2Jb\n") == "a\\x1b[2Jb\\n"
    assert len(printable("x" * 10_000)) == 200


def test_every_error_has_its_exit_code() -> None:
    codes = {cls.__name__: cls.exit_code for cls in [MixqError, *_subclasses(MixqError)]}
    assert codes == {
        "MixqError": 1,
        "UsageError": 2,
        "PromptError": 2,
        "PromptTooLong": 2,
        "QueueFull": 1,
        "ModelFileError": 3,
        "DoesNotFitError": 4,
        "StorageError": 5,
    }


def _subclasses(cls: type) -> list[type]:
    return [s for child in cls.__subclasses__() for s in (child, *_subclasses(child)) if s.__module__ == "mixq.errors"]


def test_importing_mixq_imports_neither_torch_nor_numpy() -> None:
    probe = "import mixq, mixq.config, mixq.system.paths, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert ran.stdout == "False False\n"
