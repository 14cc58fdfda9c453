"""GGUF files as sources: the very weights, folders and token ids of the checkpoint; kept to the bit; damage is told."""

from __future__ import annotations

import json
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
from mixq.errors import ModelFileError, UsageError
from mixq.formats.folder import ModelFolder
from mixq.formats.packed import PackedLinear
from mixq.quantize import gguf_format
from mixq.quantize.export.gguf_file import GgufExport
from mixq.quantize.job import quantize
from mixq.quantize.sources.gguf import GgufSource
from mixq.quantize.sources.open import open_source
from tests.checkpoints import write_tiny_llama, write_tiny_mistral, write_tiny_mixtral
from tests.gguf_files import DEMO_TOKENIZER, raw_config, write_gguf, write_with_tokenizer
from tests.packed_checkpoints import shards_of

ROOT = Path(__file__).parents[3]
TOKENIZERS = (
    DEMO_TOKENIZER,
    Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1",
)
TOKENS = [1, 5, 9, 13, 60]
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_XXS")

Weights = dict[str, Tensor]


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
