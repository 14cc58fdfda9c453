"""`--recipe`: the file, and a folder that was made by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixq.config import ModelConfig
from mixq.errors import UsageError
from mixq.formats.architecture import parameters
from mixq.formats.folder import ModelFolder
from mixq.formats.mix import Mix
from mixq.formats.packed import PackedLinear
from mixq.formats.scheme import Scheme
from mixq.models.presets import PRESETS
from mixq.quantize.job import quantize
from mixq.quantize.layout import all_items, plan_shards
from mixq.quantize.recipe import read_recipe
from mixq.quantize.report import sizes_of_items
from tests.checkpoints import write_tiny_mixtral

TEXT = r"""
# the first and the last layer are finer
[schemes]
'model\.layers\.(0|1)\.block_sparse_moe\.experts\..*\.w2' = "nl4:16"
'.*\.block_sparse_moe\.experts\..*\.w2' = "w8"
'.*\.self_attn\.v_proj' = "bf16"
"lm_head" = "nl4"
"""


def recipe_of(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_recipe_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert list(read_recipe(recipe_of(tmp_path, TEXT)).items()) == [
        (r"model\.layers\.(0|1)\.block_sparse_moe\.experts\..*\.w2", Scheme("nl4", 16)),
        (r".*\.block_sparse_moe\.experts\..*\.w2", Scheme("w8", 128)),
        (r".*\.self_attn\.v_proj", None),
        ("lm_head", Scheme("nl4", 32)),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no table \[schemes\]"),
        ("[schemes]", r"has no table \[schemes\] with a pattern"),
        ("schemes = 3", r"has no table \[schemes\]"),
        ("[scheme]\n'lm_head' = 'w8'", r"unknown key 'scheme'.*Did you mean 'schemes'"),
        ('[schemes]\n"a\\.b" = "w8"', r"recipe.toml is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        ("[schemes]\nmodel.layers = 'w8'", "'model' has no scheme in quotes"),
        ("[schemes]\n'lm_head' = 8", "'lm_head' has no scheme in quotes"),
        ("[schemes]\n'lm_head' = 'nl5'", "recipe.toml: 'lm_head': unknown scheme 'nl5'.*Did you mean 'nl4'"),
        ("[schemes]\n'lm_head' = 'nl4:17'", "group size 17 does not exist"),
        ("[schemes]\n'(a+)+' = 'w8'", r"recipe.toml: '\(a\+\)\+' is too complex"),
        ("[schemes]\n'' = 'w8'", "is not a pattern of 1 to 200"),
        ("[schemes]\n'lm_head' = 'w8'\n'lm_head' = 'nl4'", "is not TOML"),
        (b"#" * (1 << 20) + b"\n", "too many for a recipe"),
        ("a=" + "[" * 100_000, "is not TOML"),
    ],
)
def test_files_that_are_no_recipe(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as error:
        read_recipe(recipe_of(tmp_path, text))
    assert "recipe.toml" in error.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            read_recipe(path)


def test_the_plan_has_the_recipes_schemes_and_sizes(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(PRESETS["mixtral-8x7b"])
    mix = Mix.resolve(config, recipe=read_recipe(recipe_of(tmp_path, TEXT)))
    items = list(all_items(plan_shards(config, mix)))
    schemes = {item.parameter.module: item.scheme_text for item in items}
    assert schemes["model.layers.1.block_sparse_moe.experts.7.w2"] == "nl4:16"
    assert schemes["model.layers.2.block_sparse_moe.experts.7.w2"] == "w8:128"
    assert schemes["model.layers.2.self_attn.v_proj"] == "bfloat16"
    assert {row.scheme for row in sizes_of_items(config, items).rows if row.part == "experts"} == {
        "nl4:16",
        "nl4:32",
        "w8:128",
    }


def test_a_job_makes_the_folder_of_a_recipe_and_it_opens(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "source", layers=3)
    recipe = read_recipe(recipe_of(tmp_path, TEXT))
    quantize(tmp_path / "source", tmp_path / "out", recipe=recipe)
    folder = ModelFolder.open(tmp_path / "out")
    expected = Mix.resolve(folder.config, recipe=recipe)
    for parameter in parameters(folder.config):
        if parameter.quantizable:
            weight = folder.linear(parameter.module)
            scheme = weight.scheme if isinstance(weight, PackedLinear) else None
            assert scheme == expected.scheme_of(parameter), parameter.module
    assert not isinstance(folder.linear("model.layers.2.self_attn.v_proj"), PackedLinear)
    with pytest.raises(UsageError, match="recipe"):
        quantize(tmp_path / "source", tmp_path / "out")
