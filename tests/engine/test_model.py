"""A loaded model: events, cancelling, contexts, kept conversations, and what it says to bad input."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import mistral_common
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import mixq
from mixq import Done, Model, PromptProgress, Token
from mixq.config import PREFILL_CHUNK
from mixq.errors import DoesNotFitError, ModelFileError, PromptError, UsageError

TOKENIZER = Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
ASK = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Mixtral with the real tokenizer."""
    torch.manual_seed(11)
    print("seed 11")
    config = transformers.MixtralConfig(
        vocab_size=32000,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        max_position_embeddings=2048,
        initializer_range=0.2,
    )
    path = tmp_path_factory.mktemp("tiny")
    transformers.MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(path)
    shutil.copy(TOKENIZER, path / "tokenizer.model")
    (path / "tokenizer_config.json").write_text('{"chat_template": "[INST] {{ messages[0].content }} [/INST]"}')
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return mixq.load(folder, exact=True, context=1200)


def done(events: Any) -> Done:
    *_, last = events
    assert isinstance(last, Done)
    return last


def test_events_come_in_order_and_add_up(model: Model) -> None:
    events = list(model.chat(ASK, temperature=0, max_tokens=12))
    kinds = [type(e) for e in events]
    tokens = [e for e in events if isinstance(e, Token)]
    assert kinds == [PromptProgress, *[Token] * len(tokens), Done]
    last = done(events)
    assert last.text == "".join(t.text for t in tokens) + last.tail
    assert last.token_ids == tuple(t.id for t in tokens)
    assert last.reason == "length"
    stats = last.stats
    assert stats.prompt_tokens == events[0].total == events[0].done
    assert stats.decode_tokens == len(tokens) - 1
    assert stats.context_used == stats.prompt_tokens + stats.decode_tokens
    assert stats.prompt_tokens_per_second > 0
    assert stats.decode_tokens_per_second > 0
    assert 0 < stats.time_to_first_token <= stats.prompt_seconds
    assert stats.as_dict()["decode_tokens_per_second"] == stats.decode_tokens_per_second


def test_greedy_text_is_the_argmax_of_forward(model: Model) -> None:
    prompt = model.tokenizer.encode("One two three")
    answer = model.generate(prompt, temperature=0, max_tokens=8, stream=False)
    ids = list(prompt)
    for token in answer.token_ids:
        assert token == int(model.forward(ids)[-1].argmax())
        ids.append(token)
    assert answer.text == model.tokenizer.decode(answer.token_ids, strip_leading_space=False)


def test_same_seed_same_text(model: Model) -> None:
    first, again, other = (model.chat(ASK, seed=s, temperature=1.0, max_tokens=20, stream=False) for s in (5, 5, 6))
    assert first.text == again.text
    assert first.text != other.text


def test_the_seed_of_load_is_the_default(folder: Path) -> None:
    texts = {mixq.load(folder, seed=5).chat(ASK, temperature=1.0, max_tokens=20, stream=False).text for _ in range(2)}
    assert len(texts) == 1


def test_logprobs_are_of_the_models_distribution(model: Model) -> None:
    prompt = model.tokenizer.encode("One two")
    answer = model.generate(prompt, temperature=0.5, seed=1, max_tokens=3, logprobs=2, stream=False)
    expected = model.forward([*prompt, *answer.token_ids])[len(prompt) - 1 :].log_softmax(-1)
    for position, token in enumerate(answer.tokens):
        assert token.logprob == pytest.approx(float(expected[position, token.id]), abs=1e-4)
        assert token.top_logprobs[0][1] == pytest.approx(float(expected[position].max()), abs=1e-4)
        assert len(token.top_logprobs) == 2


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(model: Model) -> None:
    whole = model.chat(ASK, temperature=0, max_tokens=12, stream=False).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    cut = model.chat(ASK, temperature=0, max_tokens=12, stop=[stop], stream=False)
    assert cut.reason == "stop"
    assert cut.text == whole[: whole.index(stop)]


def test_the_end_token_ends_the_answer(model: Model, folder: Path, tmp_path: Path) -> None:
    first = model.chat(ASK, temperature=0, max_tokens=3, stream=False).token_ids
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "generation_config.json").write_text(f'{{"eos_token_id": [2, {first[2]}]}}')
    ended = mixq.load(copy, exact=True).chat(ASK, temperature=0, max_tokens=9, stream=False)
    assert (ended.reason, ended.token_ids) == ("stop", first[:2])
    on = mixq.load(copy, exact=True).chat(ASK, temperature=0, max_tokens=9, ignore_eos=True, stream=False)
    assert (on.reason, len(on.token_ids)) == ("length", 9)


def test_generation_ends_where_the_context_does(folder: Path) -> None:
    short = mixq.load(folder, exact=True, context=20)
    last = short.generate(list(range(5, 20)), temperature=0, ignore_eos=True, stream=False)
    assert last.reason == "context"
    assert last.stats.context_used == 20
    assert len(last.token_ids) == 6  # five more are run; the sixth is known but has no place


def test_context_is_capped_by_the_models_own_and_that_is_said(folder: Path) -> None:
    capped = mixq.load(folder, context=10**6)
    assert capped.context == 2048
    assert capped.notes == ("context 1000000 is more than the model's maximum; it is 2048.",)


def test_cancel_stops_within_a_token_and_keeps_the_text(model: Model) -> None:
    cancel = threading.Event()
    seen = []
    for event in model.chat(ASK, temperature=0, ignore_eos=True, cancel=cancel):
        if isinstance(event, Token):
            seen.append(event)
            if len(seen) == 4:
                cancel.set()
    assert isinstance(event, Done)
    assert event.reason == "cancelled"
    assert len(seen) == 4
    assert event.text == "".join(t.text for t in seen) + event.tail


def test_cancel_stops_within_a_prefill_chunk(model: Model) -> None:
    cancel = threading.Event()
    events = model.generate(list(range(3, 3 + PREFILL_CHUNK + 200)), cancel=cancel)
    assert next(events) == PromptProgress(PREFILL_CHUNK, PREFILL_CHUNK + 200)
    cancel.set()
    last = next(events)
    assert isinstance(last, Done)
    assert (last.reason, last.token_ids) == ("cancelled", ())
    assert last.stats.prompt_tokens == PREFILL_CHUNK


def test_a_conversation_runs_only_what_is_new(model: Model) -> None:
    session = model.new_session()
    first = done(session.chat(ASK, temperature=0, max_tokens=6, ignore_eos=True))
    assert first.stats.cached_tokens == 0
    talk = [*ASK, {"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
    second = done(session.chat(talk, temperature=0, max_tokens=6))
    assert second.stats.cached_tokens >= first.stats.prompt_tokens
    assert second.text == model.chat(talk, temperature=0, max_tokens=6, stream=False).text
    again = done(session.chat(talk, temperature=0, max_tokens=6))
    assert again.stats.prompt_tokens == 1
    assert again.text == second.text


def test_a_conversation_goes_on_after_a_cancelled_prefill(model: Model) -> None:
    session = model.new_session()
    ids = list(range(3, 3 + PREFILL_CHUNK + 200))
    cancel = threading.Event()
    events = session.answer(ids, continues_text=True, cancel=cancel, temperature=0, max_tokens=4)
    next(events)
    cancel.set()
    done(events)
    resumed = done(session.answer(ids, continues_text=True, temperature=0, max_tokens=4))
    assert resumed.stats.cached_tokens == PREFILL_CHUNK
    assert resumed.token_ids == model.generate(ids, temperature=0, max_tokens=4, stream=False).token_ids


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompt_is_refused(model: Model, prompt: Any) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.generate(prompt)


def test_prompt_too_long_is_refused_never_cut(model: Model) -> None:
    with pytest.raises(PromptError, match="The prompt has 1201 tokens; the context holds 1200"):
        model.generate([5] * 1201)
    with pytest.raises(PromptError, match="1201"):
        model.forward([5] * 1201)


def test_token_id_outside_the_vocabulary_is_refused(model: Model) -> None:
    with pytest.raises(PromptError, match="32000"):
        model.generate([5, 32000])
    with pytest.raises(PromptError, match="-1"):
        model.forward([5, -1])


def test_a_folder_without_tokenizer_takes_ids_and_says_what_is_missing_for_text(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer.model"))
    bare = mixq.load(tmp_path / "bare", exact=True)
    assert bare.forward([1, 2, 3]).shape == (3, 32000)
    assert len(bare.generate([1, 2, 3], max_tokens=4, ignore_eos=True, stream=False).token_ids) == 4
    for ask in (lambda: bare.chat(ASK), lambda: bare.generate("Hello"), lambda: bare.generate([1], stop=["x"])):
        with pytest.raises((PromptError, UsageError), match="tokenizer"):
            ask()


@pytest.mark.parametrize("ids", [["a"], [1.5], [True]])
def test_ids_that_are_no_whole_numbers_are_refused(model: Model, ids: list[Any]) -> None:
    with pytest.raises(PromptError, match="whole numbers"):
        model.generate(ids)


def test_padded_vocabulary_rows_are_never_drawn(folder: Path, tmp_path: Path) -> None:
    """A vocabulary larger than the tokenizer's (32064, say): its last rows have no text."""
    padded = tmp_path / "padded"
    shutil.copytree(folder, padded)
    tensors = load_file(padded / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], tensors[name][:64] * 100])
    save_file(tensors, padded / "model.safetensors", metadata={"format": "pt"})
    config = (padded / "config.json").read_text().replace('"vocab_size": 32000', '"vocab_size": 32064')
    (padded / "config.json").write_text(config)
    loaded = mixq.load(padded, exact=True)
    assert loaded.forward([1, 2]).shape == (2, 32064)
    assert max(loaded.chat(ASK, seed=1, max_tokens=40, ignore_eos=True, stream=False).token_ids) < 32000


def test_damaged_weights_are_named_as_such_not_sampled(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not finite"):
        mixq.load(broken).chat(ASK, stream=False)


@pytest.mark.parametrize("name", ["no-such-model", "~no-such-user", "", "..\0"])
def test_no_such_folder_is_named(name: str) -> None:
    with pytest.raises(ModelFileError, match="neither a folder"):
        mixq.load(name)


def test_devices_that_are_not_there_are_refused_and_idle_flags_are_said(folder: Path) -> None:
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="No GPU can be used"):
            mixq.load(folder, device="cuda")
    assert "vram" in mixq.load(folder, vram="8GB").notes[0]
    assert mixq.load(folder).notes == ()


def test_a_context_that_memory_cannot_hold_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 1000)
    with pytest.raises(DoesNotFitError, match="KV cache"):
        mixq.load(folder)


def test_a_kv_cache_that_the_system_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    model = mixq.load(folder)
    monkeypatch.setattr("mixq.model.kv_cache.torch.empty", refuse)
    with pytest.raises(DoesNotFitError, match="2048 positions"):
        model.new_kv_cache()


def test_repr_and_stats_say_what_is_loaded(model: Model) -> None:
    assert "2 layers, 4 experts" in repr(model)
    model.chat(ASK, max_tokens=2, stream=False)
    assert model.stats()["last"]["prompt_tokens"] > 0
