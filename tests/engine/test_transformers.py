"""Scripts written for transformers: the same ids and, but for the import, the same lines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import mixq
from mixq.errors import PromptError, UsageError
from mixq.system import paths
from mixq.text.chat_template import Message
from mixq.transformers import AutoModelForCausalLM, AutoTokenizer, CausalLM
from tests.checkpoints import write_tiny_mixtral

MODEL = str(paths.demo_source())


@pytest.fixture(scope="module")
def model() -> CausalLM:
    return AutoModelForCausalLM.from_pretrained(MODEL)


def test_the_script_of_the_model_card(model: CausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    inputs = tokenizer("Hello my name is", return_tensors="pt").to("cuda")
    outputs = model.generate(**inputs, max_new_tokens=20)
    text = tokenizer.decode(outputs[0], skip_special_tokens=True)
    assert outputs.shape[1] <= inputs.input_ids.shape[1] + 20
    assert text.startswith("Hello my name is")
    assert outputs[0, : inputs.input_ids.shape[1]].tolist() == inputs["input_ids"][0].tolist()
    said = mixq.load().generate("Hello my name is", temperature=0, max_tokens=20, stream=False)
    assert text == "Hello my name is" + said.text


def test_the_same_tokens_as_transformers(tmp_path: Path) -> None:
    write_tiny_mixtral(tmp_path, vocab=64, tokenizer=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path, exact=True, device_map="cpu", load_in_4bit=True)
    generator = torch.Generator().manual_seed(4)
    print("seed 4")
    for _ in range(4):
        ids = torch.randint(3, 64, (1, 9), generator=generator)
        expected = theirs.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert ours.generate(ids, max_new_tokens=12, pad_token_id=0).tolist() == expected.tolist()
    assert load_file(next(tmp_path.glob("*.safetensors")))  # the folder is as it was


def test_a_chat(model: CausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    messages = [Message("user", "What is 25 - (4 * 2) + 3?")]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt").to(model.device)
    answer = model.generate(ids, max_new_tokens=100)
    text = tokenizer.decode(answer[0])
    assert text.startswith("<s> [INST] What is 25") or text.startswith("<s>[INST] What is 25")
    assert text.endswith("= 20</s>")
    as_dict = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    assert as_dict.input_ids.tolist() == ids.tolist()
    assert tokenizer.apply_chat_template(messages) == ids[0].tolist()


def test_several_prompts_of_different_lengths(model: CausalLM) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = ["What is", "The capital of France is the city of"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    outputs = model.generate(**inputs, max_new_tokens=6)
    for row, text in zip(outputs, texts, strict=True):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6)
        answer = alone[0, len(tokenizer(text).input_ids) :].tolist()
        assert row[inputs.input_ids.shape[1] :].tolist()[: len(answer)] == answer
    assert tokenizer(texts).input_ids == [tokenizer(text).input_ids for text in texts]
    with pytest.raises(UsageError, match="different lengths"):
        tokenizer(texts, return_tensors="pt")


def test_sampling_follows_torchs_seed(model: CausalLM) -> None:
    ids = AutoTokenizer.from_pretrained(MODEL)("Once", return_tensors="pt").input_ids

    def drawn(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return model.generate(ids, max_new_tokens=16, do_sample=True, temperature=1.5)[0].tolist()

    assert drawn(1) == drawn(1)
    assert any(drawn(1) != drawn(seed) for seed in (2, 3, 4))


def test_lengths(model: CausalLM) -> None:
    ids = AutoTokenizer.from_pretrained(MODEL)("Count to 100: 1 2 3", return_tensors="pt").input_ids
    assert model.generate(ids, max_length=ids.shape[1] + 3).shape[1] <= ids.shape[1] + 3
    with pytest.raises(UsageError, match="already has"):
        model.generate(ids, max_length=ids.shape[1])


def test_what_is_not_known_is_refused_by_name(model: CausalLM) -> None:
    ids = torch.tensor([[1, 5]])
    with pytest.raises(UsageError, match="'num_beams'"):
        model.generate(ids, num_beams=4)
    with pytest.raises(UsageError, match="Did you mean 'temperature'"):
        model.generate(ids, temprature=1.0)
    with pytest.raises(PromptError, match="int64 tensor"):
        model.generate([1, 5])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="attention_mask"):
        model.generate(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(UsageError, match="device_map"):
        AutoModelForCausalLM.from_pretrained(MODEL, device_map="balanced")
    with pytest.raises(UsageError, match="unknown option 'trust_remote_code'"):
        AutoModelForCausalLM.from_pretrained(MODEL, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with pytest.raises(UsageError, match="'truncation'"):
        tokenizer("a", truncation=True)
    with pytest.raises(UsageError, match="'np'"):
        tokenizer("a", return_tensors="np")
