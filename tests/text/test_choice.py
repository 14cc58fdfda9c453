"""mixq.text.choice: folders as they lie on users' disks, and the format that each was made for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mistral_common
import pytest

from mixq.system import paths
from mixq.text import choice
from mixq.text.chat_template import ChatTemplate
from mixq.text.choice import choose_template
from mixq.text.open import open_tokenizer
from mixq.text.templates import ALPACA_SYSTEM, VICUNA_SYSTEM
from mixq.text.tokenizer_config import TokenizerConfig
from tests.text import jinja_texts
from tests.text.json_files import added, llama_json

DATA = Path(mistral_common.__file__).parent / "data"
V1, V3 = "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"
IM_TOKENS = {
    "32000": added(32000, "<|im_end|>"),
    "32001": added(32001, "<|im_start|>", special=False),  # so it says in the folders of Hermes
}
Make = Callable[..., ChatTemplate]


@pytest.fixture
def choose(tmp_path: Path) -> Make:
    """Write a folder and choose."""

    def make(
        name: str = "model", model: str | None = V1, raw: dict[str, Any] | None = None, **files: Any
    ) -> ChatTemplate:
        folder = tmp_path / name
        folder.mkdir()
        if model is not None:
            shutil.copy(DATA / model, folder / "tokenizer.model")
        for stem, content in files.items():
            suffix = ".jinja" if stem == "chat_template" else ".json"
            (folder / f"{stem}{suffix}").write_text(content if isinstance(content, str) else json.dumps(content))
        config = TokenizerConfig.read(folder)
        return choose_template(folder, open_tokenizer(folder, config), config, raw)

    return make


def with_template(text: object, **more: Any) -> dict[str, Any]:
    return {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "chat_template": text, **more}


def test_mixtral_8x7b_instruct(choose: Make) -> None:
    found = choose("anything", tokenizer_config=with_template(jinja_texts.MIXTRAL))
    assert (found.name, found.note) == ("mistral-v1", None)
    assert "tokenizer_config.json has [INST]" in found.why


def test_mixtral_8x7b_base_completes(choose: Make) -> None:
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "legacy": True}
    found = choose("Mixtral-8x7B-v0.1", tokenizer_config=settings, raw={"model_type": "mixtral"})
    assert (found.name, found.is_chat, found.note) == ("none", False, None)


def test_mixtral_8x22b_instruct(choose: Make) -> None:
    found = choose(model=V3, tokenizer_config=with_template(jinja_texts.MISTRAL_WITH_TOOLS))
    assert found.name == "mistral-v3"
    assert "as a token" in found.why


def test_the_template_of_8x22b_over_a_tokenizer_without_its_tokens(choose: Make) -> None:
    assert choose(tokenizer_config=with_template(jinja_texts.MISTRAL_WITH_TOOLS)).name == "mistral-v1"


def test_hermes(choose: Make) -> None:
    settings = with_template(jinja_texts.CHATML, eos_token="<|im_end|>", added_tokens_decoder=IM_TOKENS)
    found = choose("Nous-Hermes-2-Mixtral-8x7B-DPO", tokenizer_config=settings)
    assert (found.name, getattr(found, "system", 0)) == ("chatml", None)


def test_dolphin_with_added_tokens_alone(choose: Make) -> None:
    """An older folder: no template, added_tokens.json and special_tokens_map.json."""
    found = choose(
        "dolphin-2.5-mixtral-8x7b",
        added_tokens={"<|im_end|>": 32000, "<|im_start|>": 32001},
        special_tokens_map={"eos_token": {"content": "<|im_end|>"}, "bos_token": "<s>"},
        tokenizer_config={"tokenizer_class": "LlamaTokenizer"},
    )
    assert (found.name, found.note) == ("chatml", None)
    assert found.why == "its tokenizer has <|im_start|>"


def test_chatml_with_a_system_text_of_its_own(choose: Make) -> None:
    found = choose(tokenizer_config=with_template(jinja_texts.CHATML_WITH_SYSTEM))
    assert (found.name, getattr(found, "system", None)) == ("chatml", "You're Dolphin.")


def test_a_system_text_that_a_template_puts_together_is_not_taken_for_a_literal(choose: Make) -> None:
    text = "{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}" + jinja_texts.CHATML
    assert getattr(choose(tokenizer_config=with_template(text)), "system", 0) is None


def test_llama_2_chat(choose: Make) -> None:
    assert choose(tokenizer_config=with_template(jinja_texts.LLAMA_2)).name == "llama-2"
    assert choose("Llama-2-7b-chat-hf", raw={"model_type": "llama"}).name == "llama-2"
    assert choose("Llama-2-7b-hf", raw={"model_type": "llama"}).name == "none"


def test_vicuna(choose: Make) -> None:
    """Its own folders have no template; those of others have one of two."""
    by_name = choose("out", raw={"_name_or_path": "lmsys/vicuna-7b-v1.5"}, tokenizer_config={"legacy": False})
    assert (by_name.name, getattr(by_name, "system", None)) == ("vicuna", VICUNA_SYSTEM)
    assert by_name.why == "its name is vicuna-7b-v1.5"
    spaced = choose("spaced", tokenizer_config=with_template(jinja_texts.VICUNA))
    assert (getattr(spaced, "lines", None), getattr(spaced, "system", None)) == (False, VICUNA_SYSTEM)
    lines = choose("lines", tokenizer_config=with_template(jinja_texts.VICUNA_IN_LINES))
    assert (getattr(lines, "lines", None), getattr(lines, "system", 0)) == (True, None)


def test_alpaca(choose: Make) -> None:
    by_name = choose("mixtral-alpaca")
    assert (by_name.name, getattr(by_name, "system", None)) == ("alpaca", ALPACA_SYSTEM)
    by_text = choose(tokenizer_config=with_template(jinja_texts.ALPACA))
    assert (by_text.name, getattr(by_text, "system", 0)) == ("alpaca", None)


def test_the_demo_model_chats_in_mistral_v1() -> None:
    folder = paths.demo_source()
    config = TokenizerConfig.read(folder)
    found = choose_template(folder, open_tokenizer(folder, config), config)
    assert (found.name, found.is_chat, found.note) == ("mistral-v1", True, None)


def test_an_instruct_model_without_any_template(choose: Make) -> None:
    """Mistral's own release has no tokenizer_config.json."""
    assert choose("Mixtral-8x7B-Instruct-v0.1").name == "mistral-v1"
    assert choose("Mixtral-8x22B-Instruct-v0.1", V3).name == "mistral-v3"
    assert choose("mixtral-8x7b-32kseqlen").name == "none"


def test_the_name_of_what_was_quantized_counts(choose: Make) -> None:
    found = choose("mine", mixq={"source": {"name": "mistralai/Mixtral-8x7B-Instruct-v0.1"}})
    assert found.name == "mistral-v1"
    assert choose("damaged", mixq="{").name == "none"


def test_control_tokens_of_mistral_alone(choose: Make) -> None:
    assert choose("mine", V3).name == "mistral-v3"
    assert choose("Mistral-7B-v0.3", V3).name == "none"  # a base model whose tokenizer has [INST] too


def test_chat_template_jinja_counts_more_than_the_config(choose: Make) -> None:
    found = choose(tokenizer_config=with_template(jinja_texts.MIXTRAL), chat_template=jinja_texts.CHATML)
    assert found.name == "chatml"
    assert "chat_template.jinja" in found.why


@pytest.mark.parametrize(
    "named",
    [
        [{"name": "tool_use", "template": "?"}, {"name": "default", "template": jinja_texts.CHATML}],
        [{"name": "chat", "template": jinja_texts.CHATML}],
        {"default": jinja_texts.CHATML},
    ],
)
def test_several_named_templates(choose: Make, named: object) -> None:
    assert choose(tokenizer_config=with_template(named)).name == "chatml"


@pytest.mark.parametrize("empty", ["", "  ", None, [], {}, 7, [3], [{"name": "default"}]])
def test_a_template_that_is_none(choose: Make, empty: object) -> None:
    assert choose(tokenizer_config=with_template(empty)).name == "none"


@pytest.mark.parametrize(
    ("folder", "raw", "used"),
    [
        ({}, {"model_type": "mixtral"}, "mistral-v1"),
        ({}, {"model_type": "llama"}, "llama-2"),
        ({"model": V3}, {}, "mistral-v3"),
        ({"name": "my-alpaca"}, {}, "alpaca"),
        ({"added_tokens": {"<|im_start|>": 32000}}, {}, "chatml"),
    ],
)
@pytest.mark.parametrize("text", [jinja_texts.ZEPHYR, jinja_texts.MISTRAL_V7, "{{ messages }}"])
def test_an_unknown_template_is_said(
    choose: Make, folder: dict[str, Any], raw: dict[str, Any], used: str, text: str
) -> None:
    found = choose(raw=raw, tokenizer_config=with_template(text), **folder)
    assert (found.name, found.is_chat) == (used, True)
    assert found.note is not None
    assert all(part in found.note for part in ("is unknown to mixq", used, "--template", "tokenizer_config.json"))


def test_tokenizer_json_alone(choose: Make) -> None:
    """What transformers 5 saves: tokenizer.json, tokenizer_config.json, chat_template.jinja."""
    data = llama_json(DATA / V1, added(32000, "<|im_end|>"), added(32001, "<|im_start|>"))
    found = choose(model=None, tokenizer=data, tokenizer_config={"eos_token": "<|im_end|>"})
    assert (found.name, found.why) == ("chatml", "its tokenizer has <|im_start|>")
    assert choose("jinja", None, tokenizer=data, chat_template=jinja_texts.LLAMA_2).name == "llama-2"


def test_a_template_is_never_run(choose: Make) -> None:
    bomb = "{% for i in range(10**12) %}{{ cycler.__init__.__globals__.os.system('touch /tmp/x') }}{% endfor %}[INST]"
    assert choose(tokenizer_config=with_template(bomb)).name == "mistral-v1"
    assert "jinja2" not in Path(choice.__file__).read_text()


def test_a_model_without_tokenizer_has_no_format() -> None:
    found = choose_template(None, None)
    assert (found.name, found.why) == ("none", "it has no tokenizer")
