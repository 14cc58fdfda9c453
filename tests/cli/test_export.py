"""`mixq export`: what each form leaves, what it says, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest
import sentencepiece

from mixq.quantize.events import Event, ShardDone
from mixq.quantize.job import Job
from tests.checkpoints import write_tiny_mixtral
from tests.cli.conftest import RunCli


def field(reader: gguf.GGUFReader, name: str) -> object:
    found = reader.get_field(name)
    return None if found is None else found.contents()


def test_gguf_has_shape_and_tokenizer(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    outcome = cli("export", tiny, tmp_path / "tiny.gguf", "--to", "gguf")
    assert outcome.code == 0
    assert "tiny.gguf: " in outcome.out
    assert "BF16" in outcome.out
    assert "exporting: 100 %" in outcome.err
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    expected = {
        "general.architecture": "llama",
        "general.file_type": gguf.LlamaFileType.MOSTLY_BF16,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 128,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 1e6,
        "llama.expert_count": 4,
        "llama.expert_used_count": 2,
        "llama.vocab_size": 32000,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": True,
    }
    assert {name: field(reader, name) for name in expected} == expected
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tiny / "tokenizer.model"))
    ids = list(range(32000))
    assert field(reader, "tokenizer.ggml.tokens") == pieces.id_to_piece(ids)
    assert field(reader, "tokenizer.ggml.scores") == pytest.approx(pieces.get_score(ids))
    types = field(reader, "tokenizer.ggml.token_type")
    assert isinstance(types, list)
    assert types[:4] == [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.BYTE]
    assert types.count(gguf.TokenType.BYTE) == 256


def test_added_tokens_and_template_go_along(cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "tuned", vocab=32003, ffn=128, tokenizer=False)
    shutil.copy(tiny / "tokenizer.model", tmp_path / "tuned")
    (tmp_path / "tuned" / "added_tokens.json").write_text('{"<|im_end|>": 32000, "<tool>": 32001}')
    decoder = {"32000": {"content": "<|im_end|>", "special": True}}
    (tmp_path / "tuned" / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": decoder, "chat_template": "{{ messages }}", "add_bos_token": False})
    )
    assert cli("export", tmp_path / "tuned", tmp_path / "tuned.gguf", "--to", "gguf").code == 0
    reader = gguf.GGUFReader(tmp_path / "tuned.gguf")
    tokens, types = (field(reader, f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[32000:] == ["<|im_end|>", "<tool>", "[PAD32002]"]
    assert types[32000:] == [gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNUSED]
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"
    assert field(reader, "tokenizer.ggml.add_bos_token") is False


def test_a_quantized_folder_says_what_is_requantized(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    outcome = cli("export", quantized, tmp_path / "tiny.gguf", "--to", "gguf", "--json")
    document = json.loads(outcome.out)
    assert document["nbytes"] == (tmp_path / "tiny.gguf").stat().st_size
    assert set(document["types"]) == {"BF16", "F32", "Q4_0", "Q8_0"}
    assert "Warning: w1, w2, w3: requantized from nl4:32 to Q4_0" in outcome.err


def test_no_tokenizer_is_a_warning(cli: RunCli, tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "bare", tokenizer=False)
    outcome = cli("export", tmp_path / "bare", tmp_path / "bare.gguf", "--to", "gguf")
    assert (outcome.code, "no tokenizer.model" in outcome.err) == (0, True)
    assert field(gguf.GGUFReader(tmp_path / "bare.gguf"), "tokenizer.ggml.model") == "no_vocab"


def test_damaged_tokenizer_leaves_no_file(cli: RunCli, tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path / "broken")
    outcome = cli("export", tmp_path / "broken", tmp_path / "broken.gguf", "--to", "gguf")
    assert (outcome.code, "not a sentencepiece model" in outcome.err) == (3, True)
    assert not list(tmp_path.glob("*.gguf*"))


def test_folders_open_again_and_a_repeated_call_does_nothing(cli: RunCli, quantized: Path, tmp_path: Path) -> None:
    for form, quantization in (("bf16", None), ("compressed-tensors", "compressed-tensors")):
        assert cli("export", quantized, tmp_path / form, "--to", form).code == 0
        assert json.loads(cli("show", tmp_path / form, "--json").out)["quantization"] == quantization
        assert cli("verify", tmp_path / form).code == 0
        assert "nothing was written" in cli("export", quantized, tmp_path / form, "--to", form).err


def test_interrupted_folder_goes_on(
    cli: RunCli, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Job.run

    def interrupted(self: Job) -> Iterator[Event]:
        for event in whole(self):
            yield event
            if isinstance(event, ShardDone):
                raise KeyboardInterrupt

    command = ("export", quantized, tmp_path / "ct", "--to", "compressed-tensors", "--format", "w8")
    monkeypatch.setattr(Job, "run", interrupted)
    outcome = cli(*command)
    assert (outcome.code, "run the same command again to resume" in outcome.err) == (130, True)
    assert not (tmp_path / "ct" / "config.json").exists()
    monkeypatch.setattr(Job, "run", whole)
    assert json.loads(cli(*command, "--json").out)["shards_done_before"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--to", "ggfu"), "Did you mean 'gguf'"),
        (("--to", "bf16", "--type", "q4_0"), "--type applies to --to gguf only"),
        (("--to", "gguf", "--format", "w8"), "--format applies to --to compressed-tensors only"),
        (("--to", "compressed-tensors", "--format", "nl4"), "--format must be w4 or w8"),
        (("--to", "gguf", "--type", "q5_0"), "unknown type 'q5_0'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    cli: RunCli, tiny: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = cli("export", tiny, tmp_path / "out", *arguments)
    assert (outcome.code, words in outcome.err) == (2, True), outcome.err
    assert not (tmp_path / "out").exists()
