"""Reads tokenizer.json with the tokenizers library (an extra), for folders without tokenizer.model.

Contract: ids equal the library's for BPE and Unigram models, with metaspace or byte-level pieces; so does decoding,
except for invalid UTF-8 (`StreamDecoder`). The file's truncation, padding, dropout and control tokens around a text are
ignored. The file is checked before the library reads it.

Source of the format: the serialization of huggingface/tokenizers.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixq.errors import ModelFileError, is_integer, printable
from mixq.formats.json_file import parse_json_object, read_bounded
from mixq.text.tokenizer import MAX_VOCABULARY, Pieces, Tokenizer, check_size
from mixq.text.tokenizer_config import AddedToken, TokenizerConfig, is_turn_marker

if TYPE_CHECKING:
    import tokenizers

MAX_JSON_BYTES = 32 * 2**20  # the largest published one for these models has 17 MB
MODELS = ("BPE", "Unigram")
BEGIN_NAMES = ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")
END_NAMES = ("</s>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>")
"""Names of BOS and EOS, if no file next to tokenizer.json has them; the first that exists is used."""

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class JsonTokenizer(Tokenizer):
    """Text to ids and back.

    Args:
        path: a tokenizer.json.
        content: its content; None reads the file.
        config: the files next to it.

    Raises:
        ModelFileError: the library is not installed, or the file is damaged or not supported by mixq.
        StorageError: the file cannot be read.
    """

    def __init__(self, path: str | Path, content: bytes | None = None, config: TokenizerConfig | None = None) -> None:
        path, config = Path(path), config or TokenizerConfig()
        data = _checked(read_bounded(path, MAX_JSON_BYTES) if content is None else content, path)
        added = _added_tokens(data, config, path)
        self._data = _as_used(data, added)
        self._library = _open(self._data, path)
        for token_id, token in added.items():
            if self._library.token_to_id(token.content) != token_id:
                shown = printable(repr(token.content), 60)
                raise ModelFileError(f"{printable(path)}: {shown} has id {token_id}, which leaves a gap in the ids.")
        vocabulary = self._library.get_vocab(with_added_tokens=True)
        decoders = list(_types(data.get("decoder")))
        self.bytes_are = _reading(decoders, path)
        self.adds_leading_space = any(map(_strips, decoders))
        unknown = data["model"].get("unk_token")
        if data["model"].get("unk_id") is not None:  # Unigram has its index
            unknown = self._library.id_to_token(data["model"]["unk_id"])
        self.unk_id = vocabulary.get(unknown, -1)
        names = {name for name in (config.bos_token, config.eos_token) if name is not None}
        control = {i for i, token in added.items() if token.is_control} | {
            vocabulary[n] for n in names & vocabulary.keys()
        }
        if not names:
            control |= {vocabulary[n] for n in ("<s>", "</s>") if n in vocabulary}
        byte_fallback = any(kind.get("type") == "ByteFallback" for kind in decoders)
        super().__init__(path, _pieces(vocabulary, control, self.bytes_are == "text", byte_fallback, self.unk_id), {})
        self.bos_id = self._named(config.bos_token, BEGIN_NAMES, "BOS")
        self.eos_id = self._named(config.eos_token, END_NAMES, "EOS")
        self.begin_ids = (self.bos_id,) if config.add_bos else ()

    def _named(self, name: str | None, defaults: Iterable[str], what: str) -> int:
        for candidate in (name,) if name is not None else defaults:
            found = self.special_id(candidate)
            if found is not None:
                return found
        raise ModelFileError(
            f"{printable(self.path)} has no {what} token.",
            hint="Set bos_token and eos_token in the tokenizer_config.json next to it.",
        )

    def _encode_piecewise(self, text: str, *, continues: bool) -> list[int]:
        library = self._inside if continues else self._library
        return self._without_control(library.encode(text, add_special_tokens=False).ids)

    @functools.cached_property
    def _inside(self) -> tokenizers.Tokenizer:
        """The library's tokenizer for text after a control token: some add a space only at the start of a text."""
        if not any(kind.get("prepend_scheme") == "first" for kind in _types(self._data.get("pre_tokenizer"))):
            return self._library
        text = json.dumps(self._data["pre_tokenizer"]).replace('"first"', '"never"')
        return _open({**self._data, "pre_tokenizer": json.loads(text)}, self.path)


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    """Return the parsed file, after checking the size of its vocabulary and that its ids are unique."""
    check_size(content, path, "tokenizer.json", MAX_JSON_BYTES)
    data = parse_json_object(content, path.name)
    model = data.get("model")
    if not isinstance(model, dict):
        raise ModelFileError(f"{printable(path)} is not a tokenizer.json: it has no model.")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in MODELS:
        raise ModelFileError(
            f"{printable(path)} has a model of type {printable(repr(kind))}; mixq reads {' and '.join(MODELS)}.",
            hint="Copy the original checkpoint's tokenizer.model next to it; it is used instead.",
        )
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):  # with a wrong one, the library ends the process
        if model.get(field):
            raise ModelFileError(
                f"{printable(path)}: {field} is {printable(repr(model[field]), 60)}; mixq supports only null."
            )
    if kind == "Unigram" and model.get("unk_id") is None and model.get("byte_fallback") is not True:
        raise ModelFileError(f"{printable(path)}: it has neither an unknown token nor byte fallback.")
    vocabulary = model.get("vocab")
    ids: Iterable[object] = range(len(vocabulary)) if isinstance(vocabulary, list) else ()
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ids
    _check_ids(ids, path)
    return data


def _check_ids(ids: Iterable[object], path: Path) -> None:
    seen: set[int] = set()
    for token_id in ids:
        if not is_integer(token_id, 0, MAX_VOCABULARY - 1) or token_id in seen:
            raise ModelFileError(
                f"{printable(path)}: {printable(repr(token_id), 60)} is not a unique id below {MAX_VOCABULARY:,}."
            )
        seen.add(token_id)
    if not seen:
        raise ModelFileError(f"{printable(path)}: its vocabulary is empty.")


def _added_tokens(data: Mapping[str, Any], config: TokenizerConfig, path: Path) -> dict[int, AddedToken]:
    """Return the added tokens of the file, and those that are only in tokenizer_config.json."""
    listed = data.get("added_tokens") or []
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise ModelFileError(f"{printable(path)}: added_tokens is not a list of objects.")
    added = {}
    for entry in listed:
        token_id, content = entry.get("id"), entry.get("content")
        if not is_integer(token_id, 0, MAX_VOCABULARY - 1) or not isinstance(content, str) or not content:
            raise ModelFileError(f"{printable(path)}: an added token has no id or no content.")
        beside = config.added.get(token_id)
        special = entry.get("special") is True or (beside is not None and beside.is_control)
        added[token_id] = AddedToken(content, special or is_turn_marker(content))
    contents = {token.content for token in added.values()}
    known = data["model"]["vocab"]
    for token_id, token in config.added.items():
        if token_id not in added and token.content not in contents:
            place = known.get(token.content) if isinstance(known, dict) else None
            if place is None or place == token_id:
                added[token_id] = token
    return dict(sorted(added.items()))


def _as_used(data: Mapping[str, Any], added: Mapping[int, AddedToken]) -> dict[str, Any]:
    """Return the file's content without the parts that mixq ignores."""
    flags = {entry["id"]: entry for entry in data.get("added_tokens") or []}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokens = [
        {**plain, **flags.get(token_id, {}), "id": token_id, "content": token.content, "special": token.is_control}
        for token_id, token in added.items()
    ]
    model = {**data["model"], **({"dropout": None} if "dropout" in data["model"] else {})}
    left_out = {"truncation": None, "padding": None, "post_processor": None}
    return {**data, **left_out, "added_tokens": tokens, "model": model}


def _open(data: Mapping[str, Any], path: Path) -> tokenizers.Tokenizer:
    try:
        import tokenizers
    except ImportError:
        raise ModelFileError(
            f"{printable(path)} needs the tokenizers library, which is not installed.",
            hint="pip install 'mixq[tokenizers]', or copy the original checkpoint's tokenizer.model next to it.",
        ) from None
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # noqa: BLE001 (the library raises Exception itself)
        raise ModelFileError(f"{printable(path)} is damaged: {printable(error)}.") from None
    library.encode_special_tokens = True  # in a text, names of control tokens are text
    return library


def _types(part: object) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of a decoder or pre-tokenizer, those of a sequence one by one."""
    if not isinstance(part, dict):
        return
    steps = part.get("decoders", part.get("pretokenizers"))
    if part.get("type") == "Sequence" and isinstance(steps, list):
        for step in steps:
            yield from _types(step)
    else:
        yield part


def _reading(decoders: list[Mapping[str, Any]], path: Path) -> Any:
    kinds = {str(decoder.get("type")) for decoder in decoders}
    if kinds and kinds <= {"ByteLevel", "Fuse"}:
        return "text"
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        return "tokens"
    raise ModelFileError(
        f"{printable(path)} has the decoder {printable(', '.join(sorted(kinds)) or None)}, unknown to mixq.",
        hint="Copy the original checkpoint's tokenizer.model next to it; it is used instead.",
    )


def _strips(decoder: Mapping[str, Any]) -> bool:
    if decoder.get("type") == "Metaspace":
        return decoder.get("prepend_scheme", "always") != "never" and decoder.get("add_prefix_space") is not False
    return decoder.get("type") == "Strip" and bool(decoder.get("start"))


def _pieces(
    vocabulary: Mapping[str, int], control: set[int], byte_level: bool, byte_fallback: bool, unk: int
) -> Pieces:
    size = max(vocabulary.values()) + 1
    pieces = Pieces([b""] * size, [False] * size, [True] * size)
    byte_of = {character: byte for byte, character in _byte_characters().items()}
    for name, i in vocabulary.items():
        pieces.is_control[i] = i in control
        byte = _BYTE.fullmatch(name) if byte_fallback else None
        if i in control:
            pieces.content[i] = name.encode("utf-8", "replace")
        elif byte_level:
            known = all(character in byte_of for character in name)
            pieces.content[i] = bytes(byte_of[c] for c in name) if known else name.encode("utf-8", "replace")
            pieces.is_byte[i] = True
        elif byte is not None:
            pieces.content[i], pieces.is_byte[i] = bytes([int(byte[1], 16)]), True
        else:
            pieces.content[i] = name.replace(_SPACE, " ").encode("utf-8", "replace")
    names = {i: name for name, i in vocabulary.items()}
    for i in control - {unk}:
        pieces.spelling[i] = list(_spelled(names[i], vocabulary, byte_level))
    return pieces


def _spelled(name: str, vocabulary: Mapping[str, int], byte_level: bool) -> Iterator[int]:
    """Yield the ids of a name's characters, or of their bytes; those without a token are skipped."""
    characters = _byte_characters()
    for character in name:
        data = character.encode("utf-8", "replace")
        spellings = (
            [[characters[byte] for byte in data]] if byte_level else [[character], [f"<0x{b:02X}>" for b in data]]
        )
        for spelling in spellings:
            if all(part in vocabulary for part in spelling):
                yield from (vocabulary[part] for part in spelling)
                break


@functools.cache
def _byte_characters() -> dict[int, str]:
    """Return byte-level BPE's character for each byte, as in GPT-2: printable ones are themselves."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + place) for place, byte in enumerate(others)}
