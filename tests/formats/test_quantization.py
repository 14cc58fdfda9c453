"""quantization_config: what is emitted, what is understood, what is refused."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from mixq.errors import ModelFileError, UsageError
from mixq.formats.patterns import compile_pattern
from mixq.formats.quantization import ATTENTION_TARGET, EXPERTS_TARGET, QuantizationConfig
from mixq.formats.scheme import Scheme

EXPERT = "model.layers.3.block_sparse_moe.experts.5.w1"
ROUTER = "model.layers.3.block_sparse_moe.gate"
QUERY = "model.layers.3.self_attn.q_proj"

OWN = {
    "quant_method": "mixq",
    "version": 1,
    "table": list(range(-8, 8)),
    "schemes": {
        r".*\.experts\.\d+\.w[123]": {"scheme": "nl4", "group_size": 32},
        r".*\.self_attn\.(q|o)_proj": {"scheme": "nl4", "group_size": 16},
        r".*\.self_attn\..*": {"scheme": "w8", "group_size": 128},
    },
}

# As llm-compressor writes it for Mixtral (the hub's nm-testing/Mixtral-8x7B-Instruct-v0.1-W4A16-quantized).
PUBLISHED = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 128,
                "num_bits": 4,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "global_compression_ratio": 1.87,
    "ignore": ["lm_head", *(f"model.layers.{i}.block_sparse_moe.gate" for i in range(32))],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
}


def parse(raw: Any) -> QuantizationConfig:
    config = QuantizationConfig.parse(raw)
    assert config is not None
    return config


def test_no_config_means_not_quantized() -> None:
    assert QuantizationConfig.parse(None) is None


def test_own_config_first_match_wins_over_whole_names() -> None:
    config = parse(OWN)
    assert config.scheme_for(EXPERT) == Scheme("nl4", 32)
    assert config.scheme_for(QUERY) == Scheme("nl4", 16)
    assert config.scheme_for("model.layers.3.self_attn.k_proj") == Scheme("w8", 128)
    assert config.scheme_for("lm_head") is None
    assert config.scheme_for(EXPERT + "0") is None
    assert config.table == tuple(range(-8, 8))
    assert config.to_dict() == OWN


def test_own_config_written_and_read_again() -> None:
    written = QuantizationConfig.mixq({r"model\..*": Scheme("nf4", 64)}).to_dict()
    assert parse(written).to_dict() == written
    assert parse(written).scheme_for(EXPERT) == Scheme("nf4", 64)


def test_compressed_tensors_written_and_read_again() -> None:
    config = QuantizationConfig.compressed_tensors(
        {EXPERTS_TARGET: Scheme("w4", 32), ATTENTION_TARGET: Scheme("w8", 128)}
    )
    written = config.to_dict()
    assert not any(target.rstrip("$").endswith(("w1", "w2", "w3")) for target in config.schemes)
    assert written["quantization_status"] == "compressed"
    again = parse(written)
    assert again.scheme_for(EXPERT) == Scheme("w4", 32)
    assert again.scheme_for(QUERY) == Scheme("w8", 128)
    assert again.scheme_for(ROUTER) is None
    assert again.scheme_for("lm_head") is None
    assert again.to_dict() == written


def test_the_library_accepts_what_is_written() -> None:
    library = pytest.importorskip("compressed_tensors.quantization")
    written = QuantizationConfig.compressed_tensors({EXPERTS_TARGET: Scheme("w4", 64)}).to_dict()
    read = library.QuantizationConfig.model_validate({k: v for k, v in written.items() if k != "quant_method"})
    weights = read.config_groups["group_0"].weights
    assert (weights.num_bits, weights.group_size, weights.symmetric) == (4, 64, True)


def test_a_published_folder_is_understood() -> None:
    config = parse(PUBLISHED)
    assert config.scheme_for(EXPERT) == Scheme("w4", 128)
    assert config.scheme_for(QUERY) == Scheme("w4", 128)
    assert config.scheme_for(ROUTER) is None
    assert config.scheme_for("lm_head") is None


def test_matching_is_the_librarys() -> None:
    """Exact names before patterns before classes, patterns from the beginning of the name."""
    match = pytest.importorskip("compressed_tensors.utils.match")
    import torch

    targets = {
        "Linear": Scheme("w8", 128),
        r"re:.*experts\.": Scheme("w4", 32),
        r"re:.*experts\.5\..*": Scheme("w4", 64),
        EXPERT.replace("3", "4"): Scheme("w4", 128),
        r"re:experts": Scheme("w8", 32),
        "tail.experts.1": Scheme("w8", 64),
    }
    config = QuantizationConfig.compressed_tensors(targets, ignore=("re:.*gate$", "lm_head"))
    for name in (
        EXPERT,
        EXPERT.replace("3", "4"),
        EXPERT.replace("5", "2"),
        QUERY,
        ROUTER,
        "lm_head",
        "experts.w1",
        "tail.experts.1",
    ):
        module = torch.nn.Linear(1, 1)
        ignored = match.is_match(name, module, ["re:.*gate$", "lm_head"])
        matched = match.match_targets(name, module, list(targets))
        assert config.scheme_for(name) == (None if ignored else targets[matched[0]]), name


def test_only_w4_and_w8_fit_into_compressed_tensors() -> None:
    with pytest.raises(UsageError, match="nl4:32"):
        QuantizationConfig.compressed_tensors({"Linear": Scheme("nl4", 32)})


def test_bitsandbytes_nf4_is_understood() -> None:
    raw = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert parse(raw).scheme_for(EXPERT) == Scheme("nf4", 64)
    with pytest.raises(ModelFileError, match="bnb_4bit_quant_type"):
        parse({**raw, "bnb_4bit_quant_type": "fp4"})
    with pytest.raises(ModelFileError, match="load_in_4bit"):
        parse({**raw, "load_in_4bit": False, "load_in_8bit": True})


def changed(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    raw = copy.deepcopy(base)
    *parents, last = path.split("/")
    place = raw
    for parent in parents:
        place = place[parent]
    place[last] = value
    return raw


PATTERN = r".*\.experts\.\d+\.w[123]"
EIGHT_BIT_GROUP = changed(PUBLISHED, "config_groups/group_0/weights/num_bits", 8)["config_groups"]["group_0"]
BAD = {
    "a list": [],
    "text": "mixq",
    "no method": {},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "method with escapes": {"quant_method": "\x1b[31m"},
    "method is a list": {"quant_method": ["mixq"]},
    "version 2": changed(OWN, "version", 2),
    "version true": changed(OWN, "version", True),
    "short table": changed(OWN, "table", [1, 2, 3]),
    "unsorted table": changed(OWN, "table", list(range(16, 0, -1))),
    "table of floats": changed(OWN, "table", [float(i) for i in range(16)]),
    "an unknown key": changed(OWN, "zero_points", True),
    "schemes is a list": changed(OWN, "schemes", []),
    "scheme without a group": changed(OWN, f"schemes/{PATTERN}", {"scheme": "nl4"}),
    "scheme with more": changed(OWN, f"schemes/{PATTERN}", {"scheme": "nl4", "group_size": 32, "x": 1}),
    "unknown scheme": changed(OWN, f"schemes/{PATTERN}/scheme", "nl3"),
    "scheme is a list": changed(OWN, f"schemes/{PATTERN}/scheme", ["nl4"]),
    "group of 100": changed(OWN, f"schemes/{PATTERN}/group_size", 100),
    "group is text": changed(OWN, f"schemes/{PATTERN}/group_size", "32"),
    "group is true": changed(OWN, f"schemes/{PATTERN}/group_size", True),
    "not a pattern": changed(OWN, "schemes", {"(": {"scheme": "nl4", "group_size": 32}}),
    "an empty pattern": changed(OWN, "schemes", {"": {"scheme": "nl4", "group_size": 32}}),
    "a long pattern": changed(OWN, "schemes", {"a" * 201: {"scheme": "nl4", "group_size": 32}}),
    "33 patterns": changed(OWN, "schemes", {f"a{i}": {"scheme": "nl4", "group_size": 32} for i in range(33)}),
    "other format": changed(PUBLISHED, "format", "int-quantized"),
    "not compressed": changed(PUBLISHED, "quantization_status", "frozen"),
    "quantized kv cache": changed(PUBLISHED, "kv_cache_scheme", {"num_bits": 8}),
    "sparse": changed(PUBLISHED, "sparsity_config", {"format": "sparse-24-bitmask"}),
    "rotations": changed(PUBLISHED, "transform_config", {"config_groups": {"R1": {}}}),
    "no groups": changed(PUBLISHED, "config_groups", {}),
    "groups are a list": changed(PUBLISHED, "config_groups", [1]),
    "group is null": changed(PUBLISHED, "config_groups/group_0", None),
    "targets are text": changed(PUBLISHED, "config_groups/group_0/targets", "Linear"),
    "targets hold a number": changed(PUBLISHED, "config_groups/group_0/targets", [1]),
    "ignore is an object": changed(PUBLISHED, "ignore", {"lm_head": 1}),
    "ignore holds null": changed(PUBLISHED, "ignore", [None]),
    "5,000 names to ignore": changed(PUBLISHED, "ignore", [f"m{i}" for i in range(5000)]),
    "activations too": changed(PUBLISHED, "config_groups/group_0/input_activations", {"num_bits": 8}),
    "no weights": changed(PUBLISHED, "config_groups/group_0/weights", None),
    "three bits": changed(PUBLISHED, "config_groups/group_0/weights/num_bits", 3),
    "bits are a float": changed(PUBLISHED, "config_groups/group_0/weights/num_bits", 4.0),
    "float type": changed(PUBLISHED, "config_groups/group_0/weights/type", "float"),
    "asymmetric": changed(PUBLISHED, "config_groups/group_0/weights/symmetric", False),
    "per channel": changed(PUBLISHED, "config_groups/group_0/weights/strategy", "channel"),
    "dynamic": changed(PUBLISHED, "config_groups/group_0/weights/dynamic", True),
    "activation order": changed(PUBLISHED, "config_groups/group_0/weights/actorder", "group"),
    "group of 48": changed(PUBLISHED, "config_groups/group_0/weights/group_size", 48),
    "no group": changed(PUBLISHED, "config_groups/group_0/weights/group_size", None),
    **{
        f"{key} is null": changed(PUBLISHED, f"config_groups/group_0/weights/{key}", None)
        for key in ("type", "num_bits", "symmetric", "strategy", "dynamic")
    },
    "status is null": changed(PUBLISHED, "quantization_status", None),
    "sparse format is null": changed(PUBLISHED, "sparsity_config", {"format": None}),
    "two schemes for a target": changed(PUBLISHED, "config_groups/group_1", EIGHT_BIT_GROUP),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_anything_else_is_a_model_file_error(kind: str) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json") as caught:
        QuantizationConfig.parse(BAD[kind])
    assert caught.value.message.isprintable()


SLOW = [
    r"(a+)+$", r"(.*)*x", r"(?:.?)+x", r"(a|aa)+$", r"((a*)*)*", r".*.*.*.*x", r"(.|.)" * 20 + "x", r".?" * 40 + "x",
    r"(.*)\1\1x", r"(.{1,30}){1,30}x", r"(?P<a>.*)(?P=a)x", r"\\*\\*\\*\\*\\*x", r"(?i:.*)*x", r"(?<=.*)x",
    r"[.]*[.]*[.]*[.]*x",
]  # fmt: skip


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_could_take_long_is_refused(pattern: str) -> None:
    with pytest.raises(ModelFileError, match=r"too complex|not a pattern"):
        compile_pattern(pattern, "config.json")


@pytest.mark.parametrize(
    "pattern",
    [
        r".*self_attn\.(q|k|v|o)_proj$",
        r"^(?!.*gate).*$",
        r".*block_sparse_moe\.experts\..*",
        r"model\.layers\.(1|2|3)\..*",
        r".*.*.*x",
        r"[.]*[.]*.*x",
        r".*(a|b)(c|d)?x".replace(")?", ")"),
    ],
)
def test_ordinary_patterns_are_quick(pattern: str) -> None:
    compiled = compile_pattern(pattern, "config.json")
    started = time.process_time()
    for name in (EXPERT, "." * 64, "model.layers.55.block_sparse_moe.experts.7.w2" + "." * 19):
        compiled.match(name)
        compiled.fullmatch(name)
    assert time.process_time() - started < 0.5
