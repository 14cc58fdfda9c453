"""The shipped demo model: within its limits, whole, and able to do what its card says first."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from safetensors import safe_open

import mixq
from mixq.models.world import arithmetic
from mixq.models.world.turn import is_held_out
from mixq.system import paths

FOLDER = paths.demo_source()


def test_the_folder_holds_what_a_checkpoint_needs_and_stays_small() -> None:
    files = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < 40e6


def test_it_is_a_mixtral_of_at_most_20_million_weights() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["num_local_experts"] == 8
    assert config["num_experts_per_tok"] == 2
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    with safe_open(FOLDER / "model.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert {file.get_slice(name).get_dtype() for name in shapes} == {"BF16"}
    rows, columns = shapes["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
    assert (rows, columns) == (config["intermediate_size"], config["hidden_size"])
    total = sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes.values())
    assert 10e6 < total <= 20e6


def test_the_tokenizer_belongs_to_the_weights() -> None:
    config = json.loads((FOLDER / "config.json").read_text())
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "tokenizer.model"))
    assert tokenizer.vocab_size() == config["vocab_size"]
    assert (tokenizer.bos_id(), tokenizer.eos_id()) == (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


@pytest.fixture(scope="module")
def model() -> mixq.Model:
    return mixq.load(context=512)


@pytest.mark.parametrize("expression", ["25 - ( 4 * 2 ) + 3", "7 + 5", "( 6 + 3 ) * 4", "40 - 12 - 9"])
def test_it_calculates(model: mixq.Model, expression: str) -> None:
    tokens = expression.split()
    question = f"What is {arithmetic.render(tokens)}?"
    done = model.chat([{"role": "user", "content": question}], temperature=0, max_tokens=80, stream=False)
    assert done.text.strip() == arithmetic.worked(tokens), is_held_out(question)


def test_it_remembers_a_name_across_turns(model: mixq.Model) -> None:
    talk = [{"role": "user", "content": "My name is Anna."}]
    talk.append({"role": "assistant", "content": "Hello Anna! How can I help you?"})
    talk.append({"role": "user", "content": "What is my name?"})
    assert "Anna" in model.chat(talk, temperature=0, max_tokens=40, stream=False).text
