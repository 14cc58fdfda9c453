"""Mistral's own releases: every form gives the very folder that Hugging Face's checkpoint of the model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mixq
from mixq.errors import ModelFileError, UsageError
from mixq.quantize.gguf_format import pairs_to_halves
from mixq.quantize.job import quantize
from mixq.quantize.sources.mistral import config_of
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_mistral, write_tiny_mixtral
from tests.mistral_checkpoints import write_eight_parts, write_release


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def written(path: Path, form: str, tensors: dict[str, Tensor], raw: dict[str, Any]) -> None:
    if form == "eight parts":
        write_eight_parts(path, tensors, raw)
    else:
        write_release(path, tensors, raw, pickled=form == "pth")


@pytest.fixture
def reference(tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = write_tiny_mixtral(tmp_path / "reference")
    quantize(tmp_path / "reference", tmp_path / "expected")
    return tensors, json.loads((tmp_path / "reference" / "config.json").read_text())


@pytest.mark.parametrize("form", ["safetensors", "pth", "eight parts"])
def test_every_form_gives_the_same_shards_and_logits(
    form: str, reference: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    written(tmp_path / "release", form, *reference)
    source = open_source(tmp_path / "release", allow_pickle=True)
    assert source.config.rope_theta == 1e6
    quantize(source, tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"not a real one"
    for folder in ("out", "expected"):
        (tmp_path / folder / "tokenizer.model").unlink()  # it is no real one
    found, expected = (mixq.load(tmp_path / name).forward([1, 5, 9, 13, 60]) for name in ("out", "expected"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", ["pth", "eight parts"])
def test_pickled_files_are_refused_unless_they_are_allowed(
    form: str, reference: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    written(tmp_path / "release", form, *reference)
    with pytest.raises(UsageError) as error:
        quantize(tmp_path / "release", tmp_path / "out")
    assert "--allow-pickle" in str(error.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("window", [None, 4096])
def test_a_dense_release(window: int | None, tmp_path: Path) -> None:
    tensors = write_tiny_mistral(tmp_path / "reference", sliding_window=window, rope_theta=1e4)
    quantize(tmp_path / "reference", tmp_path / "expected")
    raw = json.loads((tmp_path / "reference" / "config.json").read_text())
    write_release(tmp_path / "release", tensors, raw, **({"sliding_window": window} if window else {}))
    source = open_source(tmp_path / "release")
    assert (source.config.sliding_window, source.config.rope_theta) == (window, 1e4)
    quantize(source, tmp_path / "out")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")


def test_newer_releases_name_rope_theta_and_their_tokenizer(
    reference: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    write_release(tmp_path / "release", *reference, rope_theta=2e6)
    (tmp_path / "release" / "tokenizer.model").rename(tmp_path / "release" / "tokenizer.model.v3")
    source = open_source(tmp_path / "release")
    assert source.config.rope_theta == 2e6
    assert source.side_files()["tokenizer.model"] == b"not a real one"


def test_what_is_missing_too_much_or_of_another_shape(
    reference: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path
) -> None:
    tensors, raw = reference
    less = {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.k" not in name}
    write_release(tmp_path / "less", less, raw)
    with pytest.raises(ModelFileError, match=r"'layers\.1\.attention\.wk\.weight' is missing"):
        open_source(tmp_path / "less")
    write_release(tmp_path / "more", {**tensors, "model.layers.1.extra.weight": torch.zeros(2)}, raw)
    with pytest.raises(
        ModelFileError, match=r"'layers\.1\.extra\.weight' is not part of the MixtralForCausalLM that params"
    ):
        open_source(tmp_path / "more")
    write_release(tmp_path / "other", tensors, raw, hidden_dim=512)
    with pytest.raises(ModelFileError, match=r"params\.json asks for \[512, 128\]"):
        open_source(tmp_path / "other")


def test_a_field_that_is_missing() -> None:
    with pytest.raises(ModelFileError, match=r"params\.json has no dim"):
        config_of({"n_layers": 2, "n_heads": 4})


def test_without_params(reference: tuple[dict[str, Tensor], dict[str, Any]], tmp_path: Path) -> None:
    write_release(tmp_path / "release", *reference)
    (tmp_path / "release" / "params.json").unlink()
    with pytest.raises(ModelFileError, match=r"no params\.json"):
        open_source(tmp_path / "release")


def test_the_permutation_turns_one_rotary_embedding_into_the_other() -> None:
    """Scores q.k of rows in pairs, turned as complex numbers, are those of rows in halves, turned half against half."""
    heads, d, T = 2, 8, 5
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(heads * d, 16, generator=generator) for _ in range(2))
    x = torch.randn(T, 16, generator=generator)
    angle = torch.outer(torch.arange(T), 1e4 ** (-torch.arange(0, d, 2) / d))  # [T, d/2]

    def in_pairs(weight: Tensor) -> Tensor:
        rows = torch.view_as_complex((x @ weight.T).view(T, heads, d // 2, 2))
        return torch.view_as_real(rows * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)

    def in_halves(weight: Tensor) -> Tensor:
        first, second = (x @ weight.T).view(T, heads, d).chunk(2, -1)
        cos, sin = angle.cos()[:, None], angle.sin()[:, None]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    expected = torch.einsum("thd,shd->hts", in_pairs(q), in_pairs(k))
    found = torch.einsum("thd,shd->hts", in_halves(pairs_to_halves(q, heads)), in_halves(pairs_to_halves(k, heads)))
    torch.testing.assert_close(found, expected)
