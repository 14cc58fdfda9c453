"""Turns conversations into rows of tokens: the tokenizer, Mixtral's instruct format, and packing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random

import sentencepiece
import torch
from torch import Tensor

from mixq.models.world import Conversation, conversation
from mixq.models.world.turn import Turn

BOS, EOS = 1, 2
USER_WEIGHT = 0.1  # weight of the loss on the user's tokens; the assistant's have weight 1
LONG_EVERY = 16  # one batch in 16 has rows of 1024 tokens, each one long conversation; the others 128 or 256
LATE_FROM = 874  # from this step on, the families have the shares of the second half


def train_tokenizer(path: Path, vocab_size: int) -> None:
    """A sentencepiece BPE with byte fallback and single digits; `path` ends in .model."""
    rng = Random("tokenizer")
    texts: list[str] = []
    for _ in range(20_000):
        for turn in conversation(rng).turns:
            texts += [f"[INST] {turn.user} [/INST]", turn.assistant]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.split("\n")),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        add_dummy_prefix=True,
        num_threads=1,
        minloglevel=2,
    )
    path.with_suffix(".vocab").unlink()


def encoded(tokenizer: sentencepiece.SentencePieceProcessor, talk: Conversation) -> tuple[list[int], list[float]]:
    """Return the token ids, and the loss weight of each."""
    ids, weights = [BOS], [0.0]
    for i, turn in enumerate(talk.turns):
        user = f"{talk.system}\n\n{turn.user}" if talk.system and i == 0 else turn.user
        asked = tokenizer.encode(f"[INST] {user} [/INST]")
        answered = [*tokenizer.encode(turn.assistant), EOS]
        ids += asked + answered
        weights += [USER_WEIGHT] * len(asked) + [1.0] * len(answered)
    return ids, weights


@dataclass(frozen=True, slots=True)
class Batch:
    """All [B, L]: tokens, the tokens that follow, the weight of each prediction, the conversation (0: padding)."""

    ids: Tensor
    targets: Tensor
    weights: Tensor
    segments: Tensor


def packed(talks: list[tuple[list[int], list[float]]], rows: int, length: int) -> Batch:
    """Pack by first fit; drop conversations that fit into no row."""
    ids = torch.zeros(rows, length + 1, dtype=torch.long)
    weights, segments = torch.zeros(rows, length + 1), torch.zeros(rows, length + 1, dtype=torch.long)
    used, count = [0] * rows, [0] * rows
    for tokens, loss in talks:
        row = next((r for r in range(rows) if used[r] + len(tokens) <= length), None)
        if row is None:
            continue
        at = slice(used[row], used[row] + len(tokens))
        count[row] += 1
        ids[row, at], weights[row, at] = torch.tensor(tokens), torch.tensor(loss)
        segments[row, at] = count[row]
        used[row] = at.stop
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], segments[:, :-1])


def training_batch(tokenizer: sentencepiece.SentencePieceProcessor, step: int, tokens: int) -> Batch:
    """Return the batch of a step. It depends on the step alone: a resumed run trains on the same batches."""
    rng = Random(f"batch {step}")
    length = 1024 if step % LONG_EVERY == LONG_EVERY - 1 else (128, 256)[step % 2]
    rows = tokens // length
    talks: list[tuple[list[int], list[float]]] = []
    total = 0
    while total < tokens:
        talk = encoded(tokenizer, conversation(rng, turns=24 if length == 1024 else None, late=step >= LATE_FROM))
        if length == 1024:
            end = max(i for i, token in enumerate(talk[0][:length]) if token == EOS) + 1
            talk = talk[0][:end], talk[1][:end]
        elif len(talk[0]) > length:
            continue
        talks.append(talk)
        total += length if length == 1024 else len(talk[0])
    return packed(talks, rows, length)


def question_batch(tokenizer: sentencepiece.SentencePieceProcessor, turns: list[Turn]) -> Batch:
    """One question a row, answers weighted 1 and questions 0."""
    talks = [encoded(tokenizer, Conversation("", (turn,))) for turn in turns]
    talks = [(ids, [float(w == 1.0) for w in weights]) for ids, weights in talks]
    length = max(len(ids) for ids, _ in talks)
    rows = [packed([talk], 1, length) for talk in talks]
    names = ("ids", "targets", "weights", "segments")
    return Batch(*(torch.cat([getattr(row, name) for row in rows]) for name in names))
