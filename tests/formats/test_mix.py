"""Which scheme each linear layer gets, and what config.json says of it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mixq.config import ModelConfig
from mixq.errors import UsageError
from mixq.formats.architecture import parameters
from mixq.formats.mix import Mix
from mixq.formats.quantization import QuantizationConfig
from mixq.formats.scheme import Scheme
from mixq.models.presets import PRESETS
from mixq.quantize.layout import all_items, plan_shards
from mixq.quantize.report import sizes_of_items

MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
DENSE = {**MIXTRAL, "architectures": ["MistralForCausalLM"]}


def mix_of(raw: dict[str, Any] = MIXTRAL, **options: Any) -> Mix:
    return Mix.resolve(ModelConfig.from_dict(raw), **options)


EXPERTS = ("w1", "w2", "w3")
BF16 = "bf16"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"q": "nl4:16", "k": "w8:128", "v": "w8:128", "o": "nl4:16", "w1": "nl4:32", "lm_head": "w8:128"}),
        ({"group": 64}, {"q": "nl4:64", "k": "w8:128", "w2": "nl4:64", "lm_head": "w8:128"}),
        ({"mix": "all-nl4"}, dict.fromkeys(("q", "k", "v", "o", *EXPERTS, "lm_head"), "nl4:32")),
        ({"mix": "all-nl4", "group": 16}, dict.fromkeys(("q", "k", "v", "o", *EXPERTS, "lm_head"), "nl4:16")),
        ({"mix": "all-nl4,lm_head=bf16"}, {"q": "nl4:32", "lm_head": BF16}),
        ({"mix": "attention=w8, o = w4:64"}, {"q": "w8:128", "v": "w8:128", "o": "w4:64", "w3": "nl4:32"}),
        ({"mix": "experts=nl4:64", "group": 16}, {"w1": "nl4:64", "q": "nl4:16"}),
        ({"format": "w4"}, {"w1": "w4:32", "q": "w8:128", "o": "w8:128", "lm_head": BF16}),
        ({"format": "w4", "group": 128}, {"w1": "w4:128", "q": "w8:128"}),
        ({"format": "w4", "mix": "attention=bf16"}, {"w1": "w4:32", "q": BF16}),
        ({"format": "w8", "group": 32}, {"w1": "w8:32", "q": "w8:32", "lm_head": BF16}),
        ({"format": "nf4"}, {"w1": "nf4:64", "k": "nf4:64", "lm_head": BF16}),
    ],
)
@pytest.mark.parametrize("raw", [MIXTRAL, DENSE])
def test_schemes(raw: dict[str, Any], options: dict[str, Any], expected: dict[str, str]) -> None:
    found = mix_of(raw, **options)
    dense = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"} if raw is DENSE else {}
    assert {kind: found.as_dict()[dense.get(kind, kind)] for kind in expected} == expected
    assert found.notes == ()


@pytest.mark.parametrize("raw", [MIXTRAL, DENSE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": "all-nl4"},
        {"mix": "o=w4:64,k=bf16"},
        {"format": "w4"},
        {"format": "w4", "mix": "o=w4:64"},
        {"format": "w8"},
        {"format": "nf4"},
    ],
)
def test_config_json_says_of_every_tensor_what_the_mix_says(raw: dict[str, Any], options: dict[str, Any]) -> None:
    found = mix_of(raw, **options)
    read = QuantizationConfig.parse(found.quantization.to_dict())
    assert read is not None
    for parameter in parameters(ModelConfig.from_dict(raw)):
        assert read.scheme_for(parameter.module) == found.scheme_of(parameter), parameter.module


def test_a_w4_folder_is_compressed_tensors_with_targets_that_every_engine_matches() -> None:
    raw = mix_of(format="w4").quantization.to_dict()
    assert raw["quant_method"] == "compressed-tensors"
    targets = [target for group in raw["config_groups"].values() for target in group["targets"]]
    assert r"re:.*block_sparse_moe\.experts\..*" in targets
    assert mix_of(format="nl4").quantization.to_dict()["quant_method"] == "mixq"
    assert mix_of(format="nf4").quantization.to_dict()["quant_method"] == "mixq"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "nl5"}, "unknown format 'nl5'.*Did you mean 'nl4'"),
        ({"group": 48}, "group size 48 does not exist for nl4; choose from 16, 32, 64"),
        ({"format": "w4", "group": 16}, "choose from 32, 64, 128"),
        ({"mix": "expert=nl4"}, "unknown name 'expert'.*Did you mean 'experts'"),
        ({"mix": "experts=nl5"}, "unknown scheme 'nl5'"),
        ({"mix": "experts"}, "'experts' in --mix is not NAME=FORMAT"),
        ({"mix": "all_nl4"}, "Did you mean 'all-nl4'"),
        ({"mix": ""}, "is not NAME=FORMAT"),
        ({"mix": "router=w8"}, "router is never quantized"),
        ({"mix": "embedding=w8"}, "embedding is looked up"),
        ({"format": "w4", "mix": "all-nl4"}, "needs --format nl4"),
        ({"format": "w4", "mix": "experts=nl4"}, "has only w4 and w8"),
        ({"format": "w4", "mix": "lm_head=w8"}, "lm_head must stay bf16 in a w4 folder"),
        ({"format": "w8", "mix": "k=w4:32"}, "q, k and v must have the same scheme"),
        ({"mix": "attention=bf16,experts=bf16,lm_head=bf16"}, "cannot quantize any layer of this model"),
    ],
)
def test_mixes_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        mix_of(**options)
    assert error.value.exit_code == 2


def test_a_tied_head_cannot_be_named() -> None:
    tied = {**MIXTRAL, "tie_word_embeddings": True}
    assert mix_of(tied).requested["lm_head"] is None
    with pytest.raises(UsageError, match="shares the embedding's weights"):
        mix_of(tied, mix="lm_head=w8")


def test_mixtral_8x7b_takes_what_the_design_says() -> None:
    """25.3 GB, of which a token reads 7.0 GB (mixq/README.md); w4 takes 27.3 GB."""
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    sizes = {}
    for format in ("nl4", "w4"):
        shards = plan_shards(config, Mix.resolve(config, format=format))
        assert len(shards) == 33
        sizes[format] = sizes_of_items(config, all_items(shards))
    assert round(sizes["nl4"].nbytes / 1e9, 1) == 25.3
    assert round(sizes["nl4"].token_bytes / 1e9, 1) == 7.0
    assert round(sizes["w4"].nbytes / 1e9, 1) == 27.3
    assert sizes["nl4"].weights == 46_702_792_704


OUTER = r"model\.layers\.(0|31)\.block_sparse_moe\.experts\..*\.w2"
RECIPES: list[dict[str, Scheme | None]] = [
    {OUTER: Scheme("nl4", 16)},
    {r".*\.experts\.[0-3]\.w[13]": Scheme("w4", 64), OUTER: None, "lm_head": Scheme("nl4", 32)},
    {r".*\.layers\.0\..*_proj": None, r".*_proj": Scheme("nf4", 64)},
    {r".*\.self_attn\.(q|o)_proj": None, "lm_head": None},  # the very pattern of the mix
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("options", [{}, {"mix": "all-nl4"}, {"format": "nf4"}])
def test_config_json_says_of_every_tensor_what_the_recipe_says(
    recipe: dict[str, Scheme | None], options: dict[str, Any]
) -> None:
    plain, found = mix_of(**options), mix_of(recipe=recipe, **options)
    read = QuantizationConfig.parse(json.loads(json.dumps(found.quantization.to_dict())))
    for parameter in parameters(ModelConfig.from_dict(MIXTRAL)):
        matching = [scheme for pattern, scheme in recipe.items() if re.fullmatch(pattern, parameter.module)]
        expected = matching[0] if matching else plain.scheme_of(parameter)
        assert found.scheme_of(parameter) == expected, parameter.module
        assert read.scheme_for(parameter.module) == expected, parameter.module


def test_a_recipe_is_among_the_settings_with_its_order() -> None:
    forwards: dict[str, Scheme | None] = {OUTER: Scheme("nl4", 16), r".*\.w2": None}
    backwards = dict(reversed(forwards.items()))
    assert mix_of(recipe=forwards).as_dict()["recipe"] == rf"{OUTER} = nl4:16; .*\.w2 = bf16"
    found = mix_of(recipe=backwards)
    assert found.as_dict() != mix_of(recipe=forwards).as_dict()
    assert found.notes == (
        f"recipe: '{OUTER}' has no effect, because earlier patterns match everything that it matches.",
    )
    assert mix_of(recipe={}).as_dict() == mix_of().as_dict()


def test_a_recipe_goes_over_what_is_kept() -> None:
    kept = {"w1": Scheme("w4", 32), "q": Scheme("w8", 32)}
    found = mix_of(kept=kept, recipe={r".*\.0\..*\.w1": Scheme("nl4", 16)})
    w1 = [found.scheme_of(p) for p in parameters(ModelConfig.from_dict(MIXTRAL)) if p.module.endswith("0.w1")]
    assert set(map(str, w1)) == {"nl4:16", "w4:32"}
    assert found.as_dict()["q"] == "w8:32"


def test_a_group_of_a_recipe_that_does_not_fit() -> None:
    odd = {**MIXTRAL, "hidden_size": 4112, "head_dim": 128, "intermediate_size": 14340}
    found = mix_of(odd, recipe={r".*\.q_proj": Scheme("nl4", 64), r".*\.w2": Scheme("w4", 128)})
    assert [str(scheme) for scheme in found.recipe.patterns.values()] == ["nl4:16", "None"]
    assert r"recipe: '.*\.q_proj': 4112 inputs do not divide into groups of 64; nl4:16 is used." in found.notes
    assert r"recipe: '.*\.w2': 14340 inputs do not divide into any group of w4; it stays bf16." in found.notes


def test_experts_of_a_layer_in_different_schemes_are_noted() -> None:
    assert mix_of(recipe={OUTER: Scheme("nl4", 16)}).notes == ()
    notes = mix_of(recipe={r".*\.(3|5)\.block_sparse_moe\.experts\.7\.w2": Scheme("nl4", 16)}).notes
    assert len(notes) == 1
    assert notes[0].startswith("recipe: the experts of layers 3, 5 have different schemes; an expert cache")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            {r"model\.layers\.0\.selfattn\.q_proj": "w8"},
            r"matches no linear layer.*Did you mean 'model.layers.0.self_attn",
        ),
        ({"q_proj": "w8"}, "matches no linear layer of this model"),
        ({r".*\.gate": "w8"}, "gate, which is never quantized: it is small"),
        ({r"model\.layers\.1\..*": "nl4"}, "model.layers.1.input_layernorm, which is never quantized"),
        ({r".*embed_tokens": "bf16"}, "it is looked up"),
        ({r".*embed_tokens|lm_head": "w8"}, "it is looked up"),
        ({r"(.*\.w1)+": "w8"}, "is too complex"),
        ({r"model\.(": "w8"}, "is not a pattern"),
        ({rf"model\.layers\.{i}\.self_attn\..*": "w8" for i in range(29)}, "has 29 patterns; with this mix at most"),
        ({".*_proj|.*w[123]|lm_head": "bf16"}, "cannot quantize any layer of this model"),
    ],
)
def test_recipes_that_make_no_sense(recipe: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        mix_of(recipe={p: None if text == BF16 else Scheme.parse(text) for p, text in recipe.items()})


def test_as_many_patterns_as_config_json_has_room_for() -> None:
    recipe = {rf"model\.layers\.{i}\.self_attn\..*_proj": Scheme("w8", 128) for i in range(28)}
    assert QuantizationConfig.parse(mix_of(recipe=recipe).quantization.to_dict()) is not None


@pytest.mark.parametrize("format", ["w4", "w8"])
def test_a_folder_for_other_engines_takes_no_recipe(format: str) -> None:
    with pytest.raises(UsageError, match="one scheme for all experts") as error:
        mix_of(format=format, recipe={OUTER: Scheme("w8", 128)})
    assert "--format nl4" in str(error.value.hint)
