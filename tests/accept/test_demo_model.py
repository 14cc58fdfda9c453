"""The demo model: exact answers to unseen questions, bf16 and quantized; size and divergence by format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mixq
from mixq.config import format_size
from mixq.models.world import FAMILIES, questions, score
from mixq.models.world.turn import Turn
from mixq.quantize import quantize
from mixq.quantize.calibration_run import CalibrationText
from mixq.system import paths
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
SEED, COUNT = 20_261_122, 400
FORMATS = [("nl4", None, "bf16"), ("nl4", None, "int8"), ("nl4", "all-nl4", "bf16")]
FORMATS += [(format, None, "bf16") for format in ("w4", "w8", "nf4")]
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
    """Over the tokens of right answers: mean KL(reference || model), how often both find the same token best, and the
    model's perplexity."""

    mean_kl: float
    top1_agreement: float
    perplexity: float


def answer_logprobs(model: mixq.Model, turn: Turn) -> tuple[Tensor, Tensor]:
    """Return log probabilities [T, V] at each token of the right answer, its end token included, and those tokens."""
    prompt = model.encode_chat([{"role": "user", "content": turn.user}])
    answer = [*model.tokenizer.encode(turn.assistant), model.tokenizer.eos_id]
    logprobs = model.forward([*prompt, *answer])[len(prompt) - 1 : -1].log_softmax(-1).double()
    return logprobs, torch.tensor(answer)


def divergence(reference: mixq.Model, model: mixq.Model, turns: list[Turn]) -> Divergence:
    kl, agreed, nll = [], [], []
    for turn in turns:
        (expected, _), (found, answer) = answer_logprobs(reference, turn), answer_logprobs(model, turn)
        nll.append(-found.gather(-1, answer[:, None]))
        kl.append((expected.exp() * (expected - found)).sum(-1))
        agreed.append((expected.argmax(-1) == found.argmax(-1)).double())
    perplexity = float(torch.cat(nll).mean().exp())
    return Divergence(float(torch.cat(kl).mean()), float(torch.cat(agreed).mean()), perplexity)


def calibration_text(asked: list[Turn]) -> CalibrationText:
    """Other questions of the model's small world with right answers: the kind of text that it will see."""
    known = {turn.user for turn in asked}
    turns = [turn for turn in questions(700, seed=7) if turn.user not in known]
    return CalibrationText("questions", "\n".join(f"[INST] {turn.user} [/INST] {turn.assistant}" for turn in turns))


def test_demo_model(tmp_path: Path) -> None:
    turns = questions(COUNT, SEED)
    source = paths.demo_source()
    bf16 = mixq.load(source, context=1024)

    itself = divergence(bf16, bf16, turns)
    rows = [["bf16", "-", "bf16", format_size(bf16.folder.nbytes), "-", "-", f"{itself.perplexity:.5f}"]]
    for format, mix, kv in FORMATS:
        out = tmp_path / f"{format}-{mix}"
        if not out.exists():
            quantize(source, out, format=format, mix=mix)
        model = mixq.load(out, context=1024, kv=kv)
        moved = divergence(bf16, model, turns)
        size = format_size(model.folder.nbytes)
        figures = [f"{moved.mean_kl:.5f}", f"{100 * moved.top1_agreement:.2f} %", f"{moved.perplexity:.5f}"]
        rows.append([f"`{format}`", f"`{mix}`" if mix else "default", kv, size, *figures])
    formats = markdown(["format", "mix", "KV cache", "size", "mean KL to bf16", "top-1 agreement", "perplexity"], rows)

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
        f"{COUNT} questions drawn with seed {SEED} from those that training never saw; an answer is right if it "
        "equals the expected one, character by character. KL in nats per token, and perplexity, over the tokens of "
        "the right answers. Made by `make accept`."
    )
    write("demo_model", "The demo model", how, families, formats)

    (exact, asked), (exact_nl4, _) = total(before), total(after)
    assert exact / asked >= OVERALL
    assert exact_nl4 / asked >= exact / asked - NL4_LOSS
    assert all(exact / asked >= BY_FAMILY for exact, asked in before.values()), before
