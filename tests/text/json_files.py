"""tokenizer.json files as they lie on users' disks: of a sentencepiece model, a byte-level one, a Unigram."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.text.samples import SCRIPTS

Json = dict[str, Any]
PREPEND = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
]}  # fmt: skip
DECODER = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]}  # fmt: skip
CORPUS = [
    *SCRIPTS.values(),
    "the quick brown fox jumps over the lazy dog. " * 3,
    "def f(x): return x + 1",
    "user assistant",
]


def added(token_id: int, content: str, special: bool = True, **flags: bool) -> Json:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, "special": special, **flags}


@functools.cache
def _model_of(path: Path) -> str:
    """Return a sentencepiece BPE model as transformers' converter writes it: pairs by the score of the whole."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(processor.vocab_size())
    vocabulary = {processor.id_to_piece(i): i for i in ids}
    merges: list[tuple[float, str, str]] = []
    for piece, token_id in vocabulary.items():
        parts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        pairs = [pair for pair in parts if pair[0] in vocabulary and pair[1] in vocabulary]
        score = processor.get_score(token_id)
        merges += [(score, *pair) for pair in sorted(pairs, key=lambda p: (vocabulary[p[0]], vocabulary[p[1]]))]
    merges.sort(key=lambda merge: -merge[0])
    model = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
             "vocab": vocabulary, "merges": [[a, b] for _, a, b in merges]}  # fmt: skip
    return json.dumps(model)


def llama_json(sentencepiece_model: Path, *more: Json, metaspace: str | None = None) -> Json:
    """Return the tokenizer.json of a sentencepiece model with added tokens.

    Args:
        metaspace: the prepend scheme of transformers' newer files; None is the older kind, with a normalizer.
    """
    special = [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")]
    first = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": metaspace, "split": False}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [*special, *more],
            "normalizer": PREPEND if metaspace is None else None,
            "pre_tokenizer": None if metaspace is None else first,
            "post_processor": None, "decoder": DECODER,
            "model": json.loads(_model_of(sentencepiece_model))}  # fmt: skip


@functools.cache
def _trained(kind: str) -> str:
    special = ["<s>", "</s>"]
    if kind == "bytes":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False
        )
    made.train_from_iterator(CORPUS, trainer)
    return str(made.to_str())


def trained_json(kind: str) -> Json:
    """Return a small tokenizer.json made from our samples: kind bytes (byte-level BPE) or unigram."""
    data: Json = json.loads(_trained(kind))
    return data


def library_of(data: Json) -> tokenizers.Tokenizer:
    """Return the library's own tokenizer of a file."""
    return tokenizers.Tokenizer.from_str(json.dumps(data))
