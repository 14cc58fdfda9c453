"""Chooses the chat template of a model.

Contract: `choose_template` chooses by the markers in the folder's Jinja template, which is never run; without one, by
the tokenizer's control tokens; then by the model's names. A model with none of these is a base model. `why` of the
result is the reason, `note` warns of a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mixq.errors import ModelFileError, printable
from mixq.formats.json_file import read_json_object
from mixq.formats.manifest import FILE_NAME as MANIFEST
from mixq.text.chat_template import ChatTemplate
from mixq.text.templates import (
    ALPACA_SYSTEM,
    IM_START,
    VICUNA_SYSTEM,
    Alpaca,
    BaseModel,
    ChatML,
    Llama2,
    MistralV1,
    MistralV3,
    Vicuna,
    get_template,
)
from mixq.text.tokenizer import Tokenizer
from mixq.text.tokenizer_config import TokenizerConfig

INST = "[INST]"
_UNKNOWN_MARKS = ("[SYSTEM_PROMPT]", "<|start_header_id|>", "<start_of_turn>", "<|user|>", "<|channel|>")
"""Markers of other templates that share a marker with ours, or are widely used: Mistral's version 7, Llama 3, Gemma,
Zephyr."""

_NAMES = (
    (re.compile(r"vicuna", re.I), "vicuna"),
    (re.compile(r"alpaca", re.I), "alpaca"),
    (re.compile(r"llama-?2.*chat", re.I), "llama-2"),
    (re.compile(r"mi[sx]tral.*instruct", re.I), "mistral"),
)
_BASE_NAME = re.compile(r"mi[sx]tral-(\d+x)?\d+b(-v0\.\d)?", re.I)
"""Names of Mistral's base models; the tokenizers of some have [INST] too."""


def choose_template(
    folder: Path | None,
    tokenizer: Tokenizer | None,
    config: TokenizerConfig | None = None,
    raw_config: Mapping[str, Any] | None = None,
) -> ChatTemplate:
    """Return the chat template of a model.

    Args:
        folder: the model's folder, for its name and the source in mixq.json. None for a model in memory.
        tokenizer: of the model; None for a model that takes token ids only.
        config: the files next to the tokenizer.
        raw_config: the model's config.json.
    """
    if tokenizer is None:
        return BaseModel("it has no tokenizer")
    config = config or TokenizerConfig()
    if config.template is not None:
        found = _by_text(config.template, tokenizer, config.template_file)
        if found is not None:
            return found
    names = list(_names(folder, raw_config or {}))
    guess = _by_tokens(tokenizer, names) or _by_names(tokenizer, names)
    if config.template is None:
        return guess or BaseModel("it has no chat template, no control tokens of one, and not the name of a chat model")
    if guess is None:
        llama = (raw_config or {}).get("model_type") == "llama"
        guess = Llama2("the model is a Llama") if llama else _mistral(tokenizer, "it is Mixtral's template")
    return replace(
        guess,
        note=f"The chat template in {config.template_file} is unknown to mixq. It uses "
        f"{guess.name} instead, since {guess.why}; --template chooses another.",
    )


def _by_text(text: str, tokenizer: Tokenizer, where: str) -> ChatTemplate | None:
    """Return the template whose markers are in a Jinja text; None if no known one is."""
    if any(mark in text for mark in _UNKNOWN_MARKS):
        return None
    why = f"the chat template in {where} has %s"
    if IM_START in text:
        return ChatML(why % IM_START, system=_chatml_system(text))
    if "<<SYS>>" in text:
        return Llama2(why % "<<SYS>>")
    if INST in text:
        return _mistral(tokenizer, why % INST)
    if "USER:" in text and "ASSISTANT:" in text:
        lines = re.search(r"""['"]USER: ?['"][^}]*['"]\\n|USER:[^'"]*\{\{[^}]*\}\}\n""", text) is not None
        system = VICUNA_SYSTEM if VICUNA_SYSTEM[:40] in text else None
        return Vicuna(why % "USER: and ASSISTANT:", system=system, lines=lines)
    if "### Instruction:" in text and "### Response:" in text:
        system = ALPACA_SYSTEM if ALPACA_SYSTEM[:40] in text else None
        return Alpaca(why % "### Instruction:", system=system)
    return None


def _chatml_system(text: str) -> str | None:
    """Return the system prompt that a chatml template inserts if a conversation has none."""
    found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^{}<]{1,4000}?)<\|im_end\|>", text)
    if found is None or re.search(r"""['"]\s*[+~]""", found[1]):  # not a literal: message['content'] is inserted
        return None
    return found[1].replace("\\n", "\n").replace("\\'", "'").replace('\\"', '"')


def _by_tokens(tokenizer: Tokenizer, names: list[str]) -> ChatTemplate | None:
    if tokenizer.special_id(IM_START) is not None:
        return ChatML(f"its tokenizer has {IM_START}")
    if tokenizer.special_id(INST) is not None and not any(map(_BASE_NAME.fullmatch, names)):
        return MistralV3(f"its tokenizer has {INST}")
    return None


def _by_names(tokenizer: Tokenizer, names: list[str]) -> ChatTemplate | None:
    for name in names:
        for pattern, format_name in _NAMES:
            if pattern.search(name):
                why = f"its name is {printable(name, 80)}"
                if format_name == "mistral":
                    return _mistral(tokenizer, why)
                return replace(get_template(format_name), why=why)
    return None


def _mistral(tokenizer: Tokenizer, why: str) -> ChatTemplate:
    return (
        MistralV1(why)
        if tokenizer.special_id(INST) is None
        else MistralV3(f"{why}, which its tokenizer has as a token")
    )


def _names(folder: Path | None, raw_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the last parts of a model's names: of its folder, its config and its source."""
    named: list[object] = [raw_config.get("_name_or_path")]
    if folder is not None:
        named.insert(0, folder.name)
        named.append(_source_name(folder))
    for name in named:
        if isinstance(name, str) and name:
            yield re.split(r"[/\\]", name.rstrip("/\\"))[-1][:200]


def _source_name(folder: Path) -> object:
    """Return the name of the folder's source in mixq.json."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        source = read_json_object(folder / MANIFEST).get("source")
    except ModelFileError:  # `mixq verify` reports what is wrong; the model runs without it
        return None
    return source.get("name") if isinstance(source, dict) else None
