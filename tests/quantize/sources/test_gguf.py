"""GGUF files as sources: the very weights, folders and token ids of the checkpoint; kept to the bit; damage is told."""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import mistral_common
import numpy as np
import pytest
import sentencepiece
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor

import mixq
from mixq.errors import MixqError, ModelFileError, UsageError
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize import gguf_format
from mixq.quantize.export.gguf_file import GgufExport
from mixq.quantize.job import quantize
from mixq.quantize.sources.gguf import GgufSource
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_llama, write_tiny_mistral, write_tiny_mixtral
from tests.gguf_files import write_gguf
from tests.packed_checkpoints import shards_of

ROOT = Path(__file__).parents[3]
TOKENIZERS = (
    ROOT / "models" / "demo" / "tokenizer.model",
    Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1",
)
TOKENS = [1, 5, 9, 13, 60]
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS")
TINY = {"hidden": 256, "ffn": 256, "layers": 2, "experts": 4}

Weights = dict[str, Tensor]


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Weights, dict[str, Any]]:
    """A tiny Mixtral in the folder "hf", with its config.json."""
    tensors = write_tiny_mixtral(tmp_path / "hf", **TINY, tokenizer=False)
    return tensors, raw_config(tmp_path / "hf")


def raw_config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return content


def assert_holds(path: Path, expected: Weights) -> GgufSource:
    source = open_source(path)
    assert isinstance(source, GgufSource)
    for name, weight in expected.items():
        found = source.tensor(name)
        assert found.dtype == weight.dtype, name
        assert torch.equal(found, weight), name
    return source


@pytest.mark.parametrize("write", [write_tiny_mixtral, write_tiny_mistral, write_tiny_llama])
@pytest.mark.parametrize("type", ["F32", "F16", "BF16"])
def test_plain_files_hold_the_checkpoint(write: Callable[..., Weights], type: str, tmp_path: Path) -> None:
    tensors = write(tmp_path / "hf", dtype=torch.float32, tokenizer=False)
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"), types=type)
    source = open_source(tmp_path / "m.gguf")
    assert source.notices == ("the GGUF file has no tokenizer; mixq reads sentencepiece's ('llama') only.",)
    for name, tensor in tensors.items():
        found = source.tensor(name)
        assert torch.equal(found.float(), tensor), name
        matrix = "norm" not in name and "block_sparse_moe.gate" not in name
        assert found.dtype == (gguf_format.PLAIN[type] if matrix else torch.float32)
    assert source.tensor("lm_head.weight").data_ptr() == source.tensor("lm_head.weight").data_ptr()  # a view


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize("type", QUANTIZED)
def test_quantized_files_are_dequantized(
    type: str, old_names: bool, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    expected = write_gguf(tmp_path / "m.gguf", *checkpoint, types=type, old_names=old_names)
    source = assert_holds(tmp_path / "m.gguf", expected)
    assert source.config.dtype == "bfloat16"
    assert f"the source is quantized already (GGUF's {type}): its weights" in source.notices[0]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_tensors_at_odd_places_are_handed_out_at_even_ones(
    length: int, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    """GGUF allows an alignment of 1; kernels that load whole words do not."""
    metadata = {"general.alignment": 1, "general.name": "x" * length}
    expected = write_gguf(tmp_path / "m.gguf", *checkpoint, types="F32", metadata=metadata)
    source = assert_holds(tmp_path / "m.gguf", expected)
    assert all(source.tensor(name).data_ptr() % 4 == 0 for name in expected)


def test_a_file_of_several_types_names_them(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    types = {"": "Q4_0", "output": "Q6_K", "attn_k": "Q8_0", "ffn_down": "F16"}
    source = assert_holds(tmp_path / "m.gguf", write_gguf(tmp_path / "m.gguf", *checkpoint, types=types))
    assert "(GGUF's Q4_0 and Q6_K and Q8_0)" in source.notices[0]


def test_one_matrix_is_dequantized_at_a_time_and_that_in_parts(
    checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write_gguf(tmp_path / "m.gguf", *checkpoint, types="Q4_K")
    seen = []

    def spy(data: np.ndarray[Any, Any], type: Type) -> np.ndarray[Any, Any]:
        seen.append(len(data))
        return dequantize(data, type)

    dequantize = gguf.quants.dequantize
    source = GgufSource(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf_format, "AT_ONCE", 100 * 256)
    monkeypatch.setattr(gguf.quants, "dequantize", spy)
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    assert torch.equal(source.tensor(name), expected[name])
    assert seen == [100, 100, 56]


@pytest.mark.parametrize("options", [{}, {"old_names": True}, {"parts": 3}, {"types": "F32"}], ids=str)
def test_the_folder_is_that_of_the_checkpoint(
    options: dict[str, Any], checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, **options)
    quantize(next(tmp_path.glob("m*.gguf")), tmp_path / "out")
    quantize(tmp_path / "hf", tmp_path / "expected")
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "expected")
    found, expected = (mixq.load(tmp_path / name).forward(TOKENS) for name in ("out", "expected"))
    assert found.abs().max() > 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("write", [write_tiny_mistral, write_tiny_llama])
def test_a_dense_model_gives_the_logits_of_the_checkpoint(write: Callable[..., Weights], tmp_path: Path) -> None:
    tensors = write(tmp_path / "hf", tokenizer=False)
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"))
    quantize(tmp_path / "m.gguf", tmp_path / "out", format="bf16")
    found, expected = (mixq.load(tmp_path / name).forward(TOKENS) for name in ("out", "hf"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("type", "scheme"), [("Q4_0", "w4:32"), ("Q8_0", "w8:32")])
@pytest.mark.parametrize("old_names", [False, True])
def test_what_is_kept_is_the_same_to_the_last_bit(
    type: str, scheme: str, old_names: bool, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    types = {"": type, "output": "Q6_K", "token_embd": "F16"}
    expected = write_gguf(tmp_path / "m.gguf", *checkpoint, types=types, old_names=old_names)
    quantize(tmp_path / "m.gguf", tmp_path / "out", format="nl4", keep=True)
    folder = ModelFolder.open(tmp_path / "out")
    linears = [name for name in expected if "proj" in name or "experts" in name]
    assert len(linears) == 2 * (4 + 3 * 4)
    for name in linears:
        linear = folder.linear(name.removesuffix(".weight"))
        assert isinstance(linear, PackedLinear)
        assert str(linear.scheme) == scheme
        assert linear.tensors["weight_scale"].dtype == torch.float16
        assert torch.equal(linear.dequantize(), expected[name]), name
    head = folder.linear("lm_head")
    assert isinstance(head, PackedLinear)
    assert str(head.scheme) == "w8:128"  # no linear layer of a type that is kept: as the mix has it


def test_kept_extremes(tmp_path: Path) -> None:
    """Every code, and scales that are negative, zero, subnormal and the largest."""
    source = write_tiny_mistral(tmp_path / "hf", layers=1, tokenizer=False)
    write_gguf(tmp_path / "m.gguf", source, raw_config(tmp_path / "hf"), types={"": "BF16", "ffn_up": "Q4_0"})
    scales = np.array([-1.5, 0.0, 6e-8, 65504.0], dtype=np.float16)
    entry = GgufSource(tmp_path / "m.gguf")._files[0].entries["blk.0.ffn_up.weight"]
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    codes = bytes((j % 16) | (15 - j) << 4 for j in range(16))
    for i in range(4):
        content[entry.start + 18 * i : entry.start + 18 * i + 18] = scales[i].tobytes() + codes
    (tmp_path / "m.gguf").write_bytes(content)
    row = GgufSource(tmp_path / "m.gguf").packed("model.layers.0.mlp.up_proj").dequantize()[0]
    values = [j - 8 for j in range(16)] + [7 - j for j in range(16)]
    assert row.tolist() == [value * float(scale) for scale in scales for value in values]


def test_what_no_scheme_holds_is_not_kept(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    write_gguf(tmp_path / "k.gguf", *checkpoint, types="Q4_K")
    with pytest.raises(UsageError, match="--keep has nothing to copy"):
        quantize(tmp_path / "k.gguf", tmp_path / "out", keep=True)
    with pytest.raises(KeyError):
        GgufSource(tmp_path / "k.gguf").packed("lm_head")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(
    value: float, keep: bool, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, types="Q4_0")
    entry = GgufSource(tmp_path / "m.gguf")._files[0].entries["blk.1.attn_v.weight"]
    content = bytearray((tmp_path / "m.gguf").read_bytes())
    content[entry.start : entry.start + 2] = np.float16(value).tobytes()
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"(model\.layers\.1\.self_attn\.v_proj|blk\.1\.attn_v)\.weight.*NaN"):
        quantize(tmp_path / "m.gguf", tmp_path / "out", keep=keep)


def test_config_is_that_of_the_checkpoint(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint)
    source = GgufSource(tmp_path / "m.gguf")
    assert source.config == open_source(tmp_path / "hf").config
    assert source.raw_config["rms_norm_eps"] == 1e-5  # not the float32 nearest to it
    assert source.name == "m"
    assert source.nbytes < (tmp_path / "m.gguf").stat().st_size < source.nbytes + 20_000


@pytest.mark.parametrize(("write", "theta"), [(write_tiny_mixtral, 1e6), (write_tiny_llama, 1e4)])
def test_rope_theta_where_the_file_has_none(write: Callable[..., Weights], theta: float, tmp_path: Path) -> None:
    tensors = write(tmp_path / "hf", tokenizer=False)
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"), metadata={"llama.rope.freq_base": None})
    assert GgufSource(tmp_path / "m.gguf").config.rope_theta == theta


def test_heads_of_their_own_size_and_a_tied_head(tmp_path: Path) -> None:
    tensors = write_tiny_llama(tmp_path / "hf", tokenizer=False, head_dim=64, tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"))
    source = assert_holds(tmp_path / "m.gguf", {})
    assert (source.config.head_dim, source.config.tie_word_embeddings) == (64, True)
    for name in ("q", "k"):
        name = f"model.layers.0.self_attn.{name}_proj.weight"
        assert torch.equal(source.tensor(name), tensors[name])


def test_an_exported_file_comes_back(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    GgufExport(open_source(tmp_path / "hf"), tmp_path / "m.gguf", "bf16").run()
    source = GgufSource(tmp_path / "m.gguf")
    assert all(torch.equal(source.tensor(name).float(), tensor.float()) for name, tensor in checkpoint[0].items())


def test_the_fingerprint_follows_the_weights(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, *checkpoint)
    first = GgufSource(path).fingerprint()
    assert GgufSource(path).fingerprint() == first
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert GgufSource(path).fingerprint() != first


# Parts


def test_any_part_opens_the_whole(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "m.gguf", *checkpoint, types="Q8_0", parts=3)
    for part in (1, 3):
        source = assert_holds(tmp_path / f"m-0000{part}-of-00003.gguf", expected)
        assert source.name == "m"


def test_parts_that_are_not_all_there(checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, parts=3)
    first = tmp_path / "m-00001-of-00003.gguf"
    content = (tmp_path / "m-00002-of-00003.gguf").read_bytes()
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(ModelFileError, match=r"part m-00002-of-00003\.gguf is missing"):
        GgufSource(first)
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(content)
    (tmp_path / "m-00003-of-00003.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"m-00003-of-00003\.gguf has the tensor .*, and m-00002-of-00003"):
        GgufSource(first)
    first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match=r"renamed\.gguf is one of 3 parts"):
        GgufSource(tmp_path / "renamed.gguf")


# Tokenizer


TEXTS = (
    "Hello, world!",
    " leading and  double   spaces, trailing ",
    "tabs\tand\nnew\r\nlines\n\n\n",
    "",
    "def f(x: int) -> int:\n    return x ** 2  # squared\n",
    "Größe, œuvre, naïve, İstanbul, Ελλάδα, Привет, 你好世界, こんにちは, 한국어, مرحبا",
    "🙂 👩‍👩‍👧‍👦 \u200b \u00a0 \ufeff ﬁ ½ Ⅳ e\u0301",
    "<s> </s> <unk> <0x0A> [INST] hi [/INST] ▁ ▁▁",
    "1234567890 3.14159 0xdeadbeef 1e-5",
    "\x00\x01\x7f\x80",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbb        c",
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda path: path.name)
def test_token_ids_are_those_of_the_original_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    original = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.read_bytes())
    small = {"hidden": 32, "ffn": 32, "layers": 1, "experts": 2, "vocab": original.vocab_size()}
    tensors = write_tiny_mixtral(tmp_path / "hf", **small, tokenizer=False)
    template = {"tokenizer.chat_template": "{{ bos_token }}"}
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"), tokenizer=tokenizer, metadata=template)
    source = GgufSource(tmp_path / "m.gguf")
    assert source.notices == ()
    files = source.side_files()
    made = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    ids = list(range(original.vocab_size()))
    assert made.id_to_piece(ids) == original.id_to_piece(ids)
    assert [made.bos_id(), made.eos_id(), made.unk_id(), made.pad_id()] == [1, 2, 0, -1]
    for ask in ("is_byte", "is_control", "is_unknown", "is_unused", "get_score"):
        assert getattr(made, ask)(ids) == getattr(original, ask)(ids)
    random = np.random.default_rng(0)
    pieces = ["".join(original.id_to_piece(random.integers(3, len(ids), 40).tolist())) for _ in range(200)]
    points = ["".join(map(chr, random.integers(32, 0xD7FF, 30).tolist())) for _ in range(100)]
    prose = (ROOT / "quantize" / "calibration.txt").read_text().splitlines()
    texts = (*TEXTS, *pieces, *(piece.replace("▁", " ") for piece in pieces), *points, *prose)
    for text in texts:
        assert made.encode(text) == original.encode(text), text
        assert made.decode(made.encode(text)) == original.decode(original.encode(text)), text
    settings = json.loads(files["tokenizer_config.json"])
    assert settings["chat_template"] == "{{ bos_token }}"
    assert (settings["bos_token"], settings["eos_token"], settings["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}


def write_with_tokenizer(folder: Path, vocab: int = 1536, **metadata: Any) -> Path:
    """Write a GGUF file with the demo model's tokenizer; `metadata` by what follows "tokenizer.ggml."."""
    tensors = write_tiny_mixtral(folder / "hf", hidden=32, ffn=32, layers=1, experts=2, vocab=vocab, tokenizer=False)
    changes = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    write_gguf(folder / "m.gguf", tensors, raw_config(folder / "hf"), tokenizer=TOKENIZERS[0], metadata=changes)
    return folder / "m.gguf"


def test_a_folder_made_of_it_answers(tmp_path: Path) -> None:
    quantize(write_with_tokenizer(tmp_path), tmp_path / "out")
    assert mixq.load(tmp_path / "out").tokenizer.encode("hello") == mixq.load().tokenizer.encode("hello")


def test_a_tokenizer_without_a_leading_space(tmp_path: Path) -> None:
    files = GgufSource(write_with_tokenizer(tmp_path, add_space_prefix=False)).side_files()
    made = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    assert not made.id_to_piece(made.encode("a")[0]).startswith("▁")


def test_text_cannot_spell_an_end_token_of_any_type(tmp_path: Path) -> None:
    """Fine-tunes have their end of turn as a user-defined token."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZERS[0].read_bytes())
    types = [1] * 1536
    types[0], types[600] = 2, 4
    files = GgufSource(write_with_tokenizer(tmp_path, token_type=types, eos_token_id=600)).side_files()
    made = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    assert made.eos_id() == 600
    assert 600 not in made.encode(pieces.id_to_piece(600))


def test_a_file_of_2023_without_token_types(tmp_path: Path) -> None:
    files = GgufSource(write_with_tokenizer(tmp_path, token_type=None, unknown_token_id=None)).side_files()
    made = sentencepiece.SentencePieceProcessor(model_proto=files["tokenizer.model"])
    original = sentencepiece.SentencePieceProcessor(model_proto=TOKENIZERS[0].read_bytes())
    assert all(made.encode(text) == original.encode(text) for text in TEXTS)


@pytest.mark.parametrize("kind", ["gpt2", "no_vocab", None])
def test_another_kind_of_tokenizer_is_left_out(kind: str | None, tmp_path: Path) -> None:
    source = GgufSource(write_with_tokenizer(tmp_path, model=kind))
    assert "tokenizer.model" not in source.side_files()
    assert any("sentencepiece's ('llama') only" in text for text in source.notices)


def test_a_tokenizer_that_sentencepiece_does_not_take_is_left_out(tmp_path: Path) -> None:
    source = GgufSource(write_with_tokenizer(tmp_path, tokens=[b"twice"] * 1536))
    assert "tokenizer.model" not in source.side_files()
    assert any("sentencepiece cannot load" in text for text in source.notices)


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"scores": [0.0] * 5}, r"scores is not a list of 1536 numbers"),
        ({"scores": [b"a"] * 1536}, r"scores is not a list of 1536 numbers"),
        ({"scores": None}, r"scores is not a list of 1536 numbers"),
        ({"token_type": [9] * 1536}, r"token_type has values outside of 1\.\.6"),
        ({"tokens": [b"a"] * 1537}, r"tokens has 1537 tokens; the model has 1536"),
        ({"tokens": "abc"}, r"tokens has no tokens"),
        ({"eos_token_id": 1536}, r"eos_token_id is 1536; it must be an id from 0 to 1535"),
        ({"unknown_token_id": "x"}, r"unknown_token_id is 'x'"),
    ],
)
def test_a_vocabulary_that_contradicts_itself(metadata: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=rf"^m\.gguf: tokenizer\.ggml\.{match}"):
        GgufSource(write_with_tokenizer(tmp_path, **metadata))


# What is refused


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"general.architecture": "qwen2moe"}, "the architecture is 'qwen2moe'"),
        ({"general.architecture": None}, "the architecture is None"),
        ({"llama.block_count": None}, r"have no llama\.block_count"),
        ({"llama.block_count": 3}, r"tensor 'blk\.2\.attn_norm\.weight' is missing"),
        ({"llama.block_count": 1}, r"tensor 'blk\.1\..*' is not part of the model"),
        ({"llama.block_count": 2**31}, "num_hidden_layers is 2147483648"),
        ({"llama.embedding_length": 128}, "keys of size 32, values of size 32, and rotary embedding on 64"),
        ({"llama.feed_forward_length": 128}, r"'blk\.0\.ffn_gate_exps\.weight' has shape \[4, 256, 256\]"),
        ({"llama.embedding_length": "x"}, "embedding_length is 'x'; it must be a whole number"),
        ({"llama.attention.head_count": [4, 4]}, "head_count is .*; it must be a whole number"),
        ({"llama.attention.head_count": 0}, "head_count is 0; it must be a whole number of at least 1"),
        ({"llama.attention.head_count_kv": 3}, "not a multiple"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps is nan"),
        ({"llama.expert_count": 8}, r"tensor 'blk\.0\.ffn_gate_inp\.weight' has shape \[4, 256\]"),
        ({"llama.rope.dimension_count": 32}, "rotary embedding on 32"),
        ({"llama.attention.value_length": 128}, "size 64, values of size 128"),
        ({"llama.rope.scaling.type": "yarn"}, r"rope\.scaling\.type is 'yarn'"),
        ({"llama.rope.scaling.factor": 4.0}, r"rope\.scaling\.factor is 4\.0"),
        ({"llama.rope.scale_linear": 2.0}, r"rope\.scale_linear is 2\.0"),
        ({"general.alignment": 3}, r"general\.alignment 3"),
    ],
    ids=str,
)
def test_metadata_that_do_not_fit(
    metadata: dict[str, Any], match: str, checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, metadata=metadata)
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


@pytest.mark.parametrize("metadata", [{"rope.scaling.type": "none"}, {"rope.scaling.factor": 1.0}])
def test_scaling_that_does_not_scale(
    metadata: dict[str, Any], checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, metadata={f"llama.{key}": value for key, value in metadata.items()})
    GgufSource(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("blk.0.attn_q.bias", np.zeros(256, np.float32), r"'blk\.0\.attn_q\.bias' is not part of the model"),
        ("rope_freqs.weight", np.full(32, 8, np.float32), "scaled rotary embeddings are not supported"),
        ("rope_freqs.weight", np.ones(32, np.float16), "scaled rotary embeddings are not supported"),
        ("output.weight", np.zeros((64, 128), np.float32), r"'output\.weight' has shape \[64, 128\]"),
        ("output.weight", np.zeros((64, 256), np.int8), r"'output\.weight' is I8, which .* does not dequantize"),
        ("rope_freqs.weight", np.ones(32, np.float32), None),
        ("blk.1.attn_rot_embd.weight", np.ones(32, np.float32), None),
    ],
)
def test_tensors_that_are_of_no_parameter(
    name: str,
    data: np.ndarray[Any, Any],
    match: str | None,
    checkpoint: tuple[Weights, dict[str, Any]],
    tmp_path: Path,
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint, further={name: (data, None)})
    if match is None:
        GgufSource(tmp_path / "m.gguf")
        return
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


def header(tensors: int = 0, pairs: int = 0, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, tensors, pairs)


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + dimensions + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "has 0 bytes"),
        (b"GGUF", "has 4 bytes"),
        (header(magic=b"GGML") + bytes(64), "is not a GGUF file"),
        (header(version=1) + bytes(64), "has version 1 of GGUF"),
        (header(version=3 << 24) + bytes(64), "is big-endian"),
        (header(tensors=2**60) + bytes(64), "declares 1,152,921"),
        (header(pairs=2**60) + bytes(64), "declares 0 tensors and 1,152,921"),
        (header(pairs=1) + struct.pack("<Q", 2**63), "has a header of more than 64 MiB"),
        (header(pairs=1) + struct.pack("<Q", 1000), "ends within its header"),
        (header(pairs=1) + pair(b"k", 99, b""), "has metadata of type 99"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 0, 2**62)), "more than 64 MiB"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**62)), "more than 64 MiB"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 12, 1000)), "ends within its header"),
        (header(pairs=1) + pair(b"k", 9, struct.pack("<IQ", 9, 1) * 9), "has an array of type 9"),
        (header(pairs=2) + pair(b"k", 0, b"\1") * 2, "has 'k' twice"),
        (header(tensors=1) + info(b"t", (32,) * 5, 0, 0), "of 5 dimensions"),
        (header(tensors=1) + info(b"t", (), 0, 0), "of 0 dimensions"),
        (header(tensors=1) + info(b"t", (33,), 2, 0), r"of shape \[33\], type Q4_0"),
        (header(tensors=1) + info(b"t", (0, 4), 0, 0), r"of shape \[4, 0\], type F32"),
        (header(tensors=1) + info(b"t", (32,), 4000, 0), "has type 4000"),
        (header(tensors=1) + info(b"t", (2**40, 2**40, 2**40, 2**40), 0, 0), "the header places tensor"),
        (header(tensors=1) + info(b"t", (8,), 0, 2**63) + bytes(99), "the header places tensor"),
        (header(tensors=1) + info(b"t", (8,), 0, 8) + bytes(99), "the header places tensor"),
        (header(tensors=2) + info(b"t", (8,), 0, 0) * 2 + bytes(99), "has the tensor 't' twice"),
        (header(tensors=1) + info(b"t", (8,), 0, 0) + bytes(99), r"tensor 'token_embd\.weight' is missing"),
    ],
)
def test_a_damaged_header_is_refused(content: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"^m\.gguf.*{match}"):
        GgufSource(tmp_path / "m.gguf")


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = write_with_tokenizer(tmp_path).read_bytes()
    random = np.random.default_rng(0)
    for size in (*range(0, 600, 7), *random.integers(600, len(content), 60).tolist(), len(content) - 1000):
        (tmp_path / "cut.gguf").write_bytes(content[:size])
        with pytest.raises(ModelFileError, match=r"^cut\.gguf"):
            GgufSource(tmp_path / "cut.gguf")


def test_bytes_of_the_header_changed_end_clearly(tmp_path: Path) -> None:
    tensors = write_tiny_mixtral(tmp_path / "hf", hidden=32, ffn=32, layers=1, experts=2, tokenizer=False)
    write_gguf(tmp_path / "m.gguf", tensors, raw_config(tmp_path / "hf"), types="Q4_0")
    content = (tmp_path / "m.gguf").read_bytes()
    end = content.index(b"output.weight") + 64
    random = np.random.default_rng(0)
    refused: list[str] = []
    for at in range(end):
        changed = bytearray(content)
        changed[at] = random.integers(256) if at % 2 else changed[at] ^ 0x80
        (tmp_path / "m.gguf").write_bytes(changed)
        try:
            GgufSource(tmp_path / "m.gguf")
        except ModelFileError as error:
            refused.append(error.message)
    assert len(refused) > end // 2
    assert all(message.startswith("m.gguf") for message in refused)


def test_without_the_package_gguf(
    checkpoint: tuple[Weights, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "m.gguf", *checkpoint)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MixqError, match="needs the package gguf") as caught:
        GgufSource(tmp_path / "m.gguf")
    assert caught.value.hint is not None
    assert re.search(r"pip install gguf", caught.value.hint)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no\.gguf does not exist"):
        open_source(tmp_path / "no.gguf")
