"""The tokenizer in a GGUF file's metadata, as the files of a Hugging Face checkpoint.

Contract: `tokenizer_files` returns a sentencepiece tokenizer.model that gives the same ids as the original, with
tokenizer_config.json and generation_config.json. Byte-pair merges by score, bytes for text without
a piece, no normalizing: as llama.cpp does for the tokenizer "llama", and as the models of Llama and Mistral declare.
Other tokenizers are omitted, with a notice.

Source: sentencepiece's src/sentencepiece_model.proto for the fields' numbers (its Python module for them needs
protobuf, which sentencepiece does not install); GGUF's token types have the same numbers as the proto's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece

from mixq.errors import ModelFileError, printable

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
TYPES = range(1, 7)
_BYTES = {f"<0x{byte:02X}>".encode() for byte in range(256)}
_BPE = 2


def tokenizer_files(metadata: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[dict[str, bytes], str | None]:
    """Return the files by name, and notices if there is no tokenizer.model among them.

    Args:
        metadata: of the file.
        config: the config.json made from the metadata.

    Raises:
        ModelFileError: the vocabulary contradicts itself or the model.
    """
    bos, eos = config["bos_token_id"], config["eos_token_id"]
    files = {"generation_config.json": _json({"bos_token_id": bos, "eos_token_id": eos})}
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "llama":
        what = "no tokenizer" if kind in (None, "no_vocab") else f"a tokenizer of type {printable(repr(kind))}"
        return files, f"the GGUF file has {what}; mixq reads sentencepiece's ('llama') only."
    tokens, scores, types = _vocabulary(metadata, config["vocab_size"])
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    for name, token in (("bos", bos), ("eos", eos), ("unknown", unknown)):
        if not isinstance(token, int) or not 0 <= token < len(tokens):
            raise ModelFileError(
                f"tokenizer.ggml.{name}_token_id is {printable(repr(token))}; it must be an id from 0 to "
                f"{len(tokens) - 1}."
            )
    types[bos] = types[eos] = CONTROL  # otherwise text could spell them
    types[unknown] = UNKNOWN
    leading = metadata.get("tokenizer.ggml.add_space_prefix") is not False
    model = _model(tokens, scores, types, (unknown, bos, eos), leading)
    try:
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        return files, f"sentencepiece cannot load the GGUF file's tokenizer: {printable(error)}"
    files["tokenizer.model"] = model
    settings: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is not False,
        "add_eos_token": metadata.get("tokenizer.ggml.add_eos_token") is True,
        "bos_token": tokens[bos].decode("utf-8", "replace"),
        "eos_token": tokens[eos].decode("utf-8", "replace"),
        "unk_token": tokens[unknown].decode("utf-8", "replace"),
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    files["tokenizer_config.json"] = _json(settings)
    return files, None


def _vocabulary(metadata: Mapping[str, Any], vocab_size: int) -> tuple[list[bytes], list[float], list[int]]:
    """Return token, score and type by id, checked."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not 0 < len(tokens) <= vocab_size:
        count = len(tokens) if isinstance(tokens, list) else "no"
        raise ModelFileError(f"tokenizer.ggml.tokens has {count} tokens; the model has {vocab_size}.")
    scores = _numbers(metadata, "scores", len(tokens), "f")
    if "tokenizer.ggml.token_type" in metadata:
        types = _numbers(metadata, "token_type", len(tokens), "iu")
    else:
        types = [BYTE if token in _BYTES else NORMAL for token in tokens]
    if not set(types) <= set(TYPES):
        raise ModelFileError(f"tokenizer.ggml.token_type has values outside of {TYPES[0]}..{TYPES[-1]}.")
    return tokens, scores, types


def _numbers(metadata: Mapping[str, Any], key: str, count: int, kinds: str) -> list[Any]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or len(values) != count:
        raise ModelFileError(f"tokenizer.ggml.{key} is not a list of {count} numbers, one for each token.")
    listed: list[Any] = values.tolist()
    return listed


def _model(
    tokens: Sequence[bytes],
    scores: Sequence[float],
    types: Sequence[int],
    special: tuple[int, int, int],
    leading_space: bool,
) -> bytes:
    """Return a serialized ModelProto; `special` are the ids of unknown, begin and end."""
    pieces = [
        _field(1, _field(1, token) + _field(2, score) + _field(3, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    trainer = {3: _BPE, 4: len(tokens), 35: int(BYTE in types)}
    trainer |= dict(zip((40, 41, 42), special, strict=True)) | {43: -1}  # there is no padding
    names = {44: " \N{DOUBLE QUESTION MARK} ".encode()}  # how an unknown token is shown
    names |= {number: tokens[id] for number, id in zip((45, 46, 47), special, strict=True)}
    fields = [_field(number, value) for number, value in trainer.items()]
    fields += [_field(number, name) for number, name in names.items()]
    normalizer = _field(1, b"identity") + _field(2, b"") + _field(3, int(leading_space)) + _field(4, 0)
    return b"".join((*pieces, _field(2, b"".join(fields)), _field(3, normalizer)))


def _field(number: int, value: int | float | bytes) -> bytes:
    """Return a field of protobuf's wire format: a varint, a float32, or bytes with their length."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers are written as two's complement of 64 bits
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
