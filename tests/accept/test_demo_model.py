"""The demo model: exact answers to unseen questions, bf16 and quantized; size and divergence by format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq import paths
from mixq.config import format_size
from mixq.models.world import FAMILIES, Turn, questions, score
from mixq.quantize import quantize
from mixq.text.chat_template import encode_chat
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
SEED, COUNT = 20_261_122, 400
FORMATS = [("nl4", None), ("nl4", "all-nl4"), ("w4", None), ("w8", None), ("nf4", None)]
OVERALL, BY_FAMILY, NL4_LOSS = 0.80, 0.60, 0.02


def answer(model: mixq.Model, turns: list[Turn]) -> list[tuple[Turn, str]]:
    return [
        (turn, model.chat([{"role": "user", "content": turn.user}], temperature=0, max_tokens=200, stream=False).text)
        for turn in turns
    ]


def share(counts: tuple[int, int]) -> str:
    exact, asked = counts
    return f"{100 * exact / asked:.1f} % ({exact} of {asked})"


def total(scores: dict[str, tuple[int, int]]) -> tuple[int, int]:
    return sum(exact for exact, _ in scores.values()), sum(asked for _, asked in scores.values())


@dataclass(frozen=True, slots=True)
class Divergence:
    """Over the tokens of right answers: mean KL(reference || model), and how often both find the same token best."""

    mean_kl: float
    top1_agreement: float


def answer_logprobs(model: mixq.Model, turn: Turn) -> Tensor:
    """Return log probabilities [T, V] at each token of the right answer, its end token included."""
    prompt = encode_chat(model.tokenizer, [{"role": "user", "content": turn.user}])
    answer = [*model.tokenizer.encode(turn.assistant), model.tokenizer.eos_id]
    return model.forward([*prompt, *answer])[len(prompt) - 1 : -1].log_softmax(-1).double()


def divergence(reference: mixq.Model, model: mixq.Model, turns: list[Turn]) -> Divergence:
    kl, agreed = [], []
    for turn in turns:
        expected, found = answer_logprobs(reference, turn), answer_logprobs(model, turn)
        kl.append((expected.exp() * (expected - found)).sum(-1))
        agreed.append((expected.argmax(-1) == found.argmax(-1)).double())
    return Divergence(float(torch.cat(kl).mean()), float(torch.cat(agreed).mean()))


def test_demo_model(tmp_path: Path) -> None:
    turns = questions(COUNT, SEED)
    source = paths.demo_source()
    bf16 = mixq.load(source, context=1024)

    rows = [["bf16", "-", format_size(bf16.folder.nbytes), "-", "-"]]
    for format, mix in FORMATS:
        out = tmp_path / f"{format}-{mix}"
        quantize(source, out, format=format, mix=mix)
        model = mixq.load(out, context=1024)
        moved = divergence(bf16, model, turns)
        size = format_size(model.folder.nbytes)
        figures = [f"{moved.mean_kl:.5f}", f"{100 * moved.top1_agreement:.2f} %"]
        rows.append([f"`{format}`", f"`{mix}`" if mix else "default", size, *figures])
    formats = markdown(["format", "mix", "size", "mean KL to bf16", "top-1 agreement"], rows)

    before = score(answer(bf16, turns))
    after = score(answer(mixq.load(tmp_path / "nl4-None", context=1024), turns))
    families = markdown(
        ["family", "bf16", "nl4"],
        [
            *([f, share(before[f]), share(after[f])] for f in FAMILIES),
            ["all", share(total(before)), share(total(after))],
        ],
    )
    how = (
        f"{COUNT} questions drawn with seed {SEED} from those that training never saw; an answer counts when it is "
        "right character by character. KL in nats a token, over the tokens of the right answers. Made by `make accept`."
    )
    write("demo_model", "The demo model", how, families, formats)

    (exact, asked), (exact_nl4, _) = total(before), total(after)
    assert exact / asked >= OVERALL
    assert exact_nl4 / asked >= exact / asked - NL4_LOSS
    assert all(exact / asked >= BY_FAMILY for exact, asked in before.values()), before
