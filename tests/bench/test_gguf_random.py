"""The random GGUF files of the bench: what a reader finds in them, and what a token of Mixtral reads."""

from __future__ import annotations

from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")

from gguf import GGMLQuantizationType as Type  # noqa: E402

from tests.bench import gguf_random  # noqa: E402

SMALL = gguf_random.mixtral(2, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=320, context=64)


@pytest.mark.parametrize("recipe", gguf_random.RECIPES)
def test_weights_are_finite_and_of_the_deviation_that_keeps_activations(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    gguf_random.write(path, SMALL, recipe, seed=3)
    reader = gguf.GGUFReader(path)
    expected = {tensor.name: tensor for tensor in gguf_random.tensors(SMALL, recipe)}
    assert [tensor.name for tensor in reader.tensors] == list(expected)
    for tensor in reader.tensors:
        assert tensor.tensor_type == expected[tensor.name].type
        assert tensor.n_bytes == expected[tensor.name].nbytes
        assert tuple(reversed(tensor.shape.tolist())) == expected[tensor.name].shape
        if tensor.name.endswith("norm.weight"):
            continue
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        deviation = weights.std() * np.sqrt(expected[tensor.name].shape[-1])
        assert 0.5 < deviation < 2, (tensor.name, deviation)
        assert abs(weights.mean()) < 0.3 * weights.std(), tensor.name
        if tensor.tensor_type in (Type.Q4_0, Type.Q8_0, Type.Q6_K, Type.IQ4_XS):
            common = abs(weights.mean()) * np.sqrt(weights.shape[-1]) / weights.std()
            assert common < 0.5, f"{tensor.name}: rows have a mean in common, so all tokens become alike"


def test_the_header_says_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "random.gguf"
    gguf_random.write(path, SMALL, "q4_0-pure")
    fields = gguf.GGUFReader(path).fields
    said = {name: fields[f"llama.{name}"].contents() for name in ("block_count", "expert_count", "expert_used_count")}
    assert said == {"block_count": 2, "expert_count": 8, "expert_used_count": 2}
    assert fields["general.architecture"].contents() == "llama"


def test_a_token_of_four_layers_and_head_reads_961_mb() -> None:
    assert gguf_random.bytes_per_token(gguf_random.mixtral(4), "q4_0-pure") == pytest.approx(961e6, rel=1e-3)


def test_half_of_the_layers_of_q4_k_m_have_more_bits() -> None:
    """The layers that llama-quantize chooses of Mixtral's 32, and as many of a model cut short."""
    for layers, chosen in ((32, [*range(4), *range(6, 28, 3), *range(28, 32)]), (4, [2, 3]), (2, [1])):
        types = [gguf_random.type_of("q4_k_m", "ffn_down_exps", layer, layers) for layer in range(layers)]
        assert [i for i, kind in enumerate(types) if kind == Type.Q6_K] == chosen
    assert gguf_random.type_of("q4_k_m", "ffn_up_exps", 0, 32) == Type.Q4_K


def test_of_all_layers_iq4_xs_reads_less_than_q4_0_and_q4_k_m_more() -> None:
    read = [
        gguf_random.bytes_per_token(gguf_random.mixtral(32), recipe) for recipe in ("iq4_xs", "q4_0-pure", "q4_k_m")
    ]
    assert read == sorted(read)
