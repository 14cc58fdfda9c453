"""Chat templates in a loaded model: chosen or asked for, said when in doubt; what ends a reply; base models
complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mixq
from mixq.engine.answer import Request
from mixq.engine.events import Done, Notice, Token
from mixq.engine.model import Model
from mixq.engine.sampling import SamplingParams
from mixq.errors import ModelFileError, PromptError, UsageError
from mixq.quantize import quantize
from mixq.system import paths
from tests.checkpoints import write_tiny_mixtral
from tests.text import jinja_texts
from tests.text.json_files import added, llama_json

ASK = [{"role": "user", "content": "Who are you?"}]
DEMO = paths.demo_source() / "tokenizer.model"
TOKENS = {"1536": added(1536, "<|im_end|>"), "1537": added(1537, "<|im_start|>", special=False)}
CHATML = {"chat_template": jinja_texts.CHATML, "eos_token": "<|im_end|>", "added_tokens_decoder": TOKENS}


def write(folder: Path, settings: dict[str, Any] | None = None, vocab: int = 1538) -> Path:
    """A tiny Mixtral with the demo model's tokenizer of 1536 pieces, as a fine-tune has it that added two tokens."""
    write_tiny_mixtral(folder, vocab=vocab, tokenizer=False)
    shutil.copy(DEMO, folder / "tokenizer.model")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("models") / "tuned", CHATML)


def always(folder: Path, token_id: int) -> None:
    """Let the model say one token for ever: its row of the head is the largest along what the model says anyway."""
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    head[:] = 0
    weights["model.norm.weight"][:] = 0.0
    weights["model.norm.weight"][0] = 1.0
    weights["model.embed_tokens.weight"][:, 0] = 30.0
    head[token_id, 0] = 1.0
    save_file(weights, folder / "model.safetensors")


def test_a_fine_tune_with_added_tokens_chats(chatml: Path) -> None:
    model = mixq.load(chatml, exact=True)
    assert (model.template.name, model.is_chat, model.vocab_size) == ("chatml", True, 1538)
    assert "<|im_start|>" in model.template.why
    assert model.eos_token_ids == (2, 1536, 1537)
    assert model.encode_chat(ASK)[:2] == [1, 1537]
    assert not list(model.notices())
    assert isinstance(model.chat(ASK, max_tokens=3, stream=False), Done)


@pytest.mark.parametrize("vocab", [1538, 1567, 1600])
def test_odd_vocabularies_quantized(vocab: int, tmp_path: Path) -> None:
    """Rows beyond the tokenizer's are padding, and never drawn; a row count need not divide by anything."""
    quantize(write(tmp_path / "source", CHATML, vocab), tmp_path / "out")
    model = mixq.load(tmp_path / "out")
    assert (model.template.name, model.vocab_size) == ("chatml", 1538)
    answer = model.chat(ASK, temperature=2, max_tokens=30, ignore_eos=True, seed=1, stream=False)
    assert max(answer.token_ids) < 1538
    assert model.tokenizer.decode(answer.token_ids) == answer.text


@pytest.mark.parametrize("end", [2, 1536, 1537])
def test_a_reply_ends_at_every_end_token(end: int, tmp_path: Path) -> None:
    """config.json names only 2, as many fine-tunes leave it."""
    folder = write(tmp_path / "tuned", CHATML)
    always(folder, end)
    model = mixq.load(folder, exact=True)
    for done in (
        model.chat(ASK, temperature=0, max_tokens=5, stream=False),
        model.generate("Hello", temperature=0, max_tokens=5, stream=False),
    ):
        assert (done.reason, done.token_ids) == ("stop", ())


def test_a_reply_ends_at_the_texts_of_its_format_and_a_completion_does_not(tmp_path: Path) -> None:
    model = mixq.load(write(tmp_path / "vicuna", {}), exact=True)
    assert model.template.name == "vicuna"
    asked = model.prompting.task(Request([1], SamplingParams(stop=("mine",))))
    assert asked.params.stop == ("mine", " USER:", "\nUSER:")
    assert model.prompting.task(Request([1], SamplingParams(), continues_text=True)).params.stop == ()


def test_a_base_model_completes_and_says_so_when_asked_to_chat(tmp_path: Path) -> None:
    model = mixq.load(write(tmp_path / "base", {"bos_token": "<s>"}, 1536), exact=True)
    assert (model.is_chat, model.template.name, model.eos_token_ids) == (False, "none", (2,))
    with pytest.raises(PromptError, match="base model") as caught:
        model.chat(ASK)
    assert "--template" in str(caught.value.hint)
    assert model.generate("Once", max_tokens=3, ignore_eos=True, stream=False).token_ids
    forced = mixq.load(tmp_path / "base", exact=True, template="mistral-v1")
    assert (forced.is_chat, forced.template.why) == (True, "it was chosen by name")
    assert forced.chat(ASK, max_tokens=2, ignore_eos=True, stream=False).token_ids


def test_another_format_is_asked_for(chatml: Path) -> None:
    model = mixq.load(chatml, exact=True, template="alpaca")
    assert "### Instruction:" in model.tokenizer.decode(model.encode_chat(ASK))
    assert not mixq.load(chatml, exact=True, template="none").is_chat
    with pytest.raises(UsageError, match=r"template is 'chatlm'.*Did you mean 'chatml'"):
        mixq.load(chatml, template="chatlm")


def test_an_unknown_format_is_said_once_before_the_reply(tmp_path: Path) -> None:
    model = mixq.load(write(tmp_path / "zephyr", {"chat_template": jinja_texts.ZEPHYR}, 1536), exact=True)
    said = [[e for e in model.chat(ASK, max_tokens=1, ignore_eos=True) if isinstance(e, Notice)] for _ in range(2)]
    assert ["is unknown to mixq" in notice.text for notice in said[0]] == [True]
    assert said[1] == []


def test_tokenizer_json_alone(chatml: Path, tmp_path: Path) -> None:
    """What transformers 5 saves; the ids and the text are those of the folder with tokenizer.model."""
    folder = tmp_path / "alone"
    shutil.copytree(chatml, folder)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(llama_json(DEMO, *TOKENS.values())))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>", "bos_token": "<s>"}')
    (folder / "chat_template.jinja").write_text(jinja_texts.CHATML)
    quantize(folder, tmp_path / "out")
    answers = []  # without the unknown token, which sentencepiece shows and the other library does not
    for path in (chatml, folder):
        model = mixq.load(path, exact=True)
        events = list(model.chat(ASK, temperature=0, max_tokens=20, ignore_eos=True))
        answers.append((model.encode_chat(ASK), [(e.id, e.text) for e in events if isinstance(e, Token) and e.id]))
    assert answers[0] == answers[1]
    made = Model(tmp_path / "out")
    assert (made.template.name, made.folder.tokenizer_path) == ("chatml", tmp_path / "out" / "tokenizer.json")


def test_a_damaged_tokenizer_is_named(chatml: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(chatml, folder)
    (folder / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelFileError, match=r"tokenizer\.model is not a sentencepiece model"):
        mixq.load(folder, exact=True).chat(ASK)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelFileError, match=r"tokenizer_config\.json"):
        _ = mixq.load(folder, exact=True).template


def test_the_demo_model_chats() -> None:
    model = mixq.load()
    assert (model.template.name, model.is_chat) == ("mistral-v1", True)


def test_a_conversation_in_chatml_runs_only_what_is_new(chatml: Path) -> None:
    torch.manual_seed(1)
    session = mixq.load(chatml, exact=True).new_session()
    *_, first = session.chat(ASK, temperature=0, max_tokens=4, ignore_eos=True)
    assert isinstance(first, Done)
    told = [*ASK, {"role": "assistant", "content": "I am."}, {"role": "user", "content": "Really?"}]
    *_, second = session.chat(told, temperature=0, max_tokens=4, ignore_eos=True)
    assert isinstance(second, Done)
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
