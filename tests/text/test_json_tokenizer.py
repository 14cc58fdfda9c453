"""mixq.text.json_tokenizer: the library's ids and decoding, no control token out of a text, hostile files."""

from __future__ import annotations

import builtins
import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixq.errors import MixqError, ModelFileError, UsageError
from mixq.text import json_tokenizer
from mixq.text.json_tokenizer import JsonTokenizer
from mixq.text.tokenizer import StreamDecoder
from mixq.text.tokenizer_config import AddedToken, TokenizerConfig
from tests.text.json_files import Json, added, library_of, llama_json, trained_json
from tests.text.samples import CONTROL_SPELLINGS, SCRIPTS

KINDS = ("llama", "metaspace", "bytes", "unigram")
SPELLINGS = [*CONTROL_SPELLINGS, "<|im_start|>user\n<|im_end|>", "a<|im_end|>b</s>c"]


@pytest.fixture(scope="session")
def files(mixtral_tokenizer_path: Path) -> dict[str, Json]:
    tokens = (added(32000, "<|im_end|>"), added(32001, "<|im_start|>", special=False), added(32002, "Zürich", False))
    return {
        "llama": llama_json(mixtral_tokenizer_path, *tokens),
        "metaspace": llama_json(mixtral_tokenizer_path, *tokens, metaspace="first"),
        "bytes": trained_json("bytes"),
        "unigram": trained_json("unigram"),
    }


def opened(data: Json | bytes, config: TokenizerConfig | None = None) -> JsonTokenizer:
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return JsonTokenizer(Path("somewhere/tokenizer.json"), content, config)


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def tokenizer(kind: str, files: dict[str, Json]) -> JsonTokenizer:
    return opened(files[kind])


@pytest.fixture(scope="session")
def library(kind: str, files: dict[str, Json]) -> Any:
    """The library's own; <|im_start|> is special there, as it is to us whatever its file says."""
    tokens = [entry | {"special": entry["content"] != "Zürich"} for entry in files[kind]["added_tokens"]]
    return library_of({**files[kind], "added_tokens": tokens})


texts = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from([*SCRIPTS.values(), " ", "\n"]), max_size=4).map("".join)
).filter(lambda text: not any(mark in text for mark in ("s>", "k>", "|>")))  # those are the next test's


@settings(deadline=None, max_examples=150)
@given(text=texts)
def test_ids_and_text_are_the_librarys(tokenizer: JsonTokenizer, library: Any, text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ids = library.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == library.decode(ids)


@pytest.mark.parametrize("text", SPELLINGS)
def test_no_spelling_gives_a_control_id(tokenizer: JsonTokenizer, kind: str, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_control(i) for i in ids if i != tokenizer.unk_id)
    if kind in ("llama", "bytes"):  # the small Unigram has no token for some of these characters
        assert tokenizer.decode(ids) == (text if kind == "bytes" else text.replace("▁", " "))


@settings(deadline=None, max_examples=100)
@given(
    parts=st.lists(st.sampled_from(["</s>", "<s>", "<", "/", "s", ">", "▁", " ", "<|im_end|>", "|", "é"]), max_size=9)
)
def test_no_arrangement_of_spellings_gives_a_control_id(tokenizer: JsonTokenizer, parts: list[str]) -> None:
    ids = tokenizer.encode("".join(parts))
    assert not any(tokenizer.is_control(i) for i in ids if i != tokenizer.unk_id)


def test_specials_are_parsed_where_that_is_asked_for(files: dict[str, Json]) -> None:
    text = "<|im_start|>user\nHello in Zürich<|im_end|>\n</s>"
    for kind in ("llama", "metaspace"):
        expected = library_of(files[kind]).encode(text, add_special_tokens=False).ids
        assert opened(files[kind]).encode(text, parse_special=True) == expected
    assert opened(files["bytes"]).encode("</s>", parse_special=True) == [1]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_ids_stream_to_what_the_library_decodes(
    tokenizer: JsonTokenizer, library: Any, kind: str, data: st.DataObject
) -> None:
    """Byte tokens make whole characters here; what becomes of the others in a Llama file is the next test."""
    size = tokenizer.vocab_size
    drawn = st.integers(0, size - 1)
    if kind in ("llama", "metaspace"):
        groups = st.one_of(
            drawn.filter(lambda i: not tokenizer.is_byte(i)).map(lambda i: [i]),
            st.sampled_from("é語👋\n").map(lambda c: [b + 3 for b in c.encode()]),
        )
        ids = [i for group in data.draw(st.lists(groups, max_size=15)) for i in group]
    else:
        ids = data.draw(st.lists(drawn, max_size=30))
    if kind == "unigram" and ids and tokenizer.piece_bytes(ids[0]).startswith(b"  "):
        ids = ids[1:]
    decoder = StreamDecoder(tokenizer)
    assert "".join([*(decoder.push(i) for i in ids), decoder.flush()]) == library.decode(ids)


def test_bytes_that_are_no_character_do_not_take_their_neighbours_with_them(files: dict[str, Json]) -> None:
    """The library makes all three U+FFFD; a stream cannot, it has shown the first character already."""
    tokenizer = opened(files["llama"])
    ids = [b + 3 for b in "é".encode()] + [0xFF + 3]
    assert library_of(files["llama"]).decode(ids) == "\ufffd\ufffd\ufffd"
    assert tokenizer.decode(ids) == "é\ufffd"


def test_pieces(files: dict[str, Json]) -> None:
    llama, by_bytes = opened(files["llama"]), opened(files["bytes"])
    assert (llama.vocab_size, llama.bos_id, llama.eos_id, llama.unk_id) == (32003, 1, 2, 0)
    assert (llama.piece_bytes(15359), llama.piece_bytes(3), llama.is_byte(3)) == (b" Hi", b"\x00", True)
    assert llama.piece_bytes(32002) == "Zürich".encode()
    assert [llama.is_control(i) for i in (0, 1, 2, 3, 32000, 32001, 32002)] == [True] * 3 + [False] + [True] * 2 + [
        False
    ]
    assert llama.encode("in Zürich")[-1] == 32002
    assert (llama.token_text(32001), llama.piece_bytes(32001)) == ("<|im_start|>", b"")
    assert llama.token_text(0xE2 + 3) == "<0xE2>"
    assert llama.special_id("<|im_end|>") == 32000
    assert llama.special_id("Zürich") is None
    assert (by_bytes.unk_id, by_bytes.adds_leading_space, llama.adds_leading_space) == (-1, False, True)
    for tokenizer in (llama, by_bytes):
        assert len(tokenizer.token_bytes()) == tokenizer.vocab_size
        assert tokenizer.token_bytes()[tokenizer.eos_id] == b"</s>"
        text = "Grüße, 語 👋"
        assert b"".join(tokenizer.piece_bytes(i) for i in tokenizer.encode(text)).decode().strip() == text
    with pytest.raises(UsageError, match="32003"):
        llama.piece_bytes(32003)


def test_what_follows_a_control_token_has_no_space_where_the_file_says_so(files: dict[str, Json]) -> None:
    assert opened(files["llama"]).encode("user", continues=True) == [2188]
    metaspace = opened(files["metaspace"])
    assert (metaspace.encode("user"), metaspace.encode("user", continues=True)) == ([2188], [1838])


def test_nothing_is_cut_padded_or_drawn(files: dict[str, Json]) -> None:
    data = copy.deepcopy(files["llama"])
    data["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    data["padding"] = {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<unk>"}  # fmt: skip
    data["model"]["dropout"] = 0.9
    text = SCRIPTS["latin"]
    assert opened(data).encode(text) == opened(files["llama"]).encode(text)


def test_added_tokens_that_only_the_config_names(files: dict[str, Json]) -> None:
    data = {**files["llama"], "added_tokens": files["llama"]["added_tokens"][:3]}
    config = TokenizerConfig({32000: AddedToken("<|im_end|>", True)}, "<s>", "<|im_end|>")
    tokenizer = opened(data, config)
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.begin_ids) == (32001, 32000, (1,))
    assert opened(data, TokenizerConfig({}, "<s>", "</s>", add_bos=False)).begin_ids == ()
    with pytest.raises(ModelFileError, match="leaves a gap in the ids"):
        opened(data, TokenizerConfig({32005: AddedToken("<|im_end|>", True)}))


@pytest.mark.parametrize("kind", ["llama", "bytes", "unigram"])
def test_a_word_of_megabytes_takes_linear_time(files: dict[str, Json], kind: str) -> None:
    """Quadratic time would be hours."""
    tokenizer = opened(files[kind])
    ids = tokenizer.encode("ab" * 500_000)
    assert tokenizer.decode(ids) == "ab" * 500_000


def test_the_library_is_an_extra(files: dict[str, Json], monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModelFileError, match="needs the tokenizers library") as caught:
        opened(files["bytes"])
    assert "pip install 'mixq[tokenizers]'" in str(caught.value.hint)


def changed(data: Json, **parts: Any) -> Json:
    return {**data, **parts}


BAD: dict[str, tuple[bytes | dict[str, Any], str]] = {
    "empty": (b"", "empty"),
    "no JSON": (b"\x80\x04", "is not JSON"),
    "cut": (b'{"model": {"type": "BPE", "vocab": {"a": 0', "is not JSON"),
    "deep": (b'{"a":' * 100_000, "nested too deep"),
    "a list": (b"[]", "must be a JSON object"),
    "no model": ({"model": None}, "no model"),
    "words": ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
    "no vocabulary": ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "empty"),
    "an id twice": ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}}, "not a unique id"),
    "a huge id": ({"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}}, "not a unique id"),
    "a merge of nothing": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "x"]]}}, "damaged"),
    "a prefix that ends the process": (
        {
            "model": {
                "type": "BPE",
                "vocab": {"a": 0, "b": 1},
                "merges": [["a", "b"]],
                "continuing_subword_prefix": "語" * 9,
            }
        },
        "continuing_subword_prefix",
    ),
    "an added token without id": ({"added_tokens": [{"content": "x"}]}, "no id"),
    "added tokens of a kind": ({"added_tokens": {"x": 1}}, "not a list"),
    "no decoder": ({"decoder": None}, "decoder None"),
    "another decoder": ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "decoder WordPiece"),
    "a normalizer of its own": ({"normalizer": {"type": "Evil"}}, "damaged"),
    "no end": ({"added_tokens": [added(0, "<s>")]}, "no EOS token"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_named(files: dict[str, Json], what: str) -> None:
    change, words = BAD[what]
    data: Json | bytes = change if isinstance(change, bytes) else changed(files["bytes"], **change)
    if what == "no end" and not isinstance(data, bytes):
        data["model"] = {
            **data["model"],
            "vocab": {("x" if k == "</s>" else k): v for k, v in data["model"]["vocab"].items()},
        }
    with pytest.raises(ModelFileError, match=words) as caught:
        opened(data)
    assert "tokenizer.json" in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_tokenizer, "MAX_JSON_BYTES", 1000)
    (tmp_path / "tokenizer.json").write_bytes(b" " * 1001)
    with pytest.raises(ModelFileError, match=r"has 1,001 bytes; .* at most 1,000"):
        JsonTokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ModelFileError, match="does not exist"):
        JsonTokenizer(tmp_path / "none.json")


def test_a_unigram_without_unknown_token_is_refused(files: dict[str, Json]) -> None:
    data = files["unigram"]
    with pytest.raises(ModelFileError, match="neither an unknown token nor byte fallback"):
        opened(changed(data, model={**data["model"], "unk_id": None}))


def places(part: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each value of a document, the first few of long lists and objects."""
    if way:
        yield way
    inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for count, (key, value) in enumerate(inside):
        if count < 20:
            yield from places(value, (*way, key))


@pytest.mark.parametrize("kind", ["bytes", "unigram"])
def test_a_file_with_any_value_changed_is_read_or_refused(files: dict[str, Json], kind: str) -> None:
    rng = random.Random(f"hostile {kind}")
    ways = list(places(files[kind]))
    values = [
        None,
        True,
        -1,
        0,
        5,
        2**31,
        2**70,
        1.5,
        "",
        "a",
        "▁",
        "\ud800",
        "x" * 1000,
        [],
        {},
        [1],
        {"a": 1},
        "Metaspace",
    ]
    for _ in range(400):
        data = copy.deepcopy(files[kind])
        *outer, last = rng.choice(ways)
        part: Any = data
        for key in outer:
            part = part[key]
        part[last] = rng.choice(values)
        try:
            tokenizer = opened(data)
        except MixqError:
            continue
        for text in ("hello </s> wörld 👋", ""):
            tokenizer.decode(tokenizer.encode(text, parse_special=True))
