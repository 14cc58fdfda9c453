"""Perplexity and the distance from a reference, against the definitions worked out in one go."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import mixq
from mixq.errors import ModelFileError, PromptError, UsageError
from mixq.measure import perplexity as perplexity_module
from mixq.measure.perplexity import perplexity
from tests.checkpoints import write_tiny_mixtral

TEXT = "The quick brown fox jumps over the lazy dog. 25 - (4 * 2) + 3 = 20.\n" * 6


def folder(path: Path, seed: int, vocab: int = 32000) -> Path:
    mistral_common = pytest.importorskip("mistral_common")
    write_tiny_mixtral(path, vocab=vocab, ffn=128, layers=1, tokenizer=False, seed=seed)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", path / "tokenizer.model")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> mixq.Model:
    return mixq.load(folder(tmp_path_factory.mktemp("model"), 1), exact=True)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> mixq.Model:
    return mixq.load(folder(tmp_path_factory.mktemp("other"), 2), exact=True)


def logits_and_targets(model: mixq.Model, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all logits [T, V] and the tokens they should have found [T], window by window."""
    ids = model.tokenizer.encode(TEXT)
    parts = [ids[i : i + window - 1] for i in range(0, len(ids), window - 1)]
    logits = torch.cat([model.forward([model.tokenizer.bos_id, *part[:-1]]) for part in parts])
    return logits, torch.tensor(ids)


@pytest.mark.parametrize("window", [512, 40, 2])
def test_perplexity_is_exp_of_the_mean_cross_entropy(model: mixq.Model, window: int) -> None:
    logits, targets = logits_and_targets(model, window)
    report = perplexity(model, TEXT, window=window)
    assert report.tokens == len(targets)
    assert report.windows == -(-len(targets) // (window - 1))
    assert report.perplexity == pytest.approx(float(cross_entropy(logits.double(), targets).exp()), rel=1e-5)
    losses = cross_entropy(logits.double(), targets, reduction="none")
    expected = report.perplexity * float(losses.std(correction=0)) / len(targets) ** 0.5
    assert report.standard_error == pytest.approx(expected, rel=1e-4)
    assert report.comparison is None


def test_reference_gives_kl_divergence_and_agreement(model: mixq.Model, other: mixq.Model) -> None:
    ours, targets = logits_and_targets(model, 64)
    theirs, _ = logits_and_targets(other, 64)
    report = perplexity(model, TEXT, reference=other, window=64)
    assert report.comparison is not None
    kl = kl_div(ours.double().log_softmax(-1), theirs.double().log_softmax(-1), log_target=True, reduction="none").sum(
        -1
    )
    assert report.comparison.mean_kl == pytest.approx(float(kl.mean()), rel=1e-4)
    assert report.comparison.max_kl == pytest.approx(float(kl.max()), rel=1e-4)
    assert report.comparison.top1_agreement == float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    expected = float(cross_entropy(theirs.double(), targets).exp())
    assert report.comparison.reference_perplexity == pytest.approx(expected, rel=1e-5)


def test_model_is_no_distance_from_itself(model: mixq.Model) -> None:
    report = perplexity(model, TEXT, reference=model)
    assert report.comparison is not None
    assert report.comparison.mean_kl == pytest.approx(0, abs=1e-6)
    assert report.comparison.top1_agreement == 1.0
    assert report.comparison.reference_perplexity == report.perplexity


def test_rows_held_at_once_do_not_change_the_figures(model: mixq.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = perplexity(model, TEXT).perplexity
    monkeypatch.setattr(perplexity_module, "ROWS", 7)
    assert perplexity(model, TEXT).perplexity == pytest.approx(whole, rel=1e-5)


def test_first_tokens_only_and_progress(model: mixq.Model) -> None:
    seen: list[tuple[int, int]] = []
    report = perplexity(model, TEXT, max_tokens=30, window=11, progress=lambda done, total: seen.append((done, total)))
    assert (report.tokens, report.windows) == (30, 3)
    assert seen == [(10, 30), (20, 30), (30, 30)]


def test_reference_with_another_vocabulary_is_refused(model: mixq.Model, tmp_path: Path) -> None:
    other = mixq.load(folder(tmp_path, 1, vocab=32064), exact=True)
    with pytest.raises(UsageError, match="different tokenizers"):
        perplexity(model, TEXT, reference=other)


def test_empty_text_is_refused(model: mixq.Model) -> None:
    with pytest.raises(PromptError, match="empty"):
        perplexity(model, "")


def test_logits_that_are_not_finite_are_refused(model: mixq.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: mixq.Model, ids: list[int], **_: object) -> torch.Tensor:
        return torch.full((len(ids), 32000), float("nan"))

    monkeypatch.setattr(mixq.Model, "forward", broken)
    with pytest.raises(ModelFileError, match="not finite"):
        perplexity(model, TEXT)


def test_a_reference_that_is_not_finite_is_named(
    model: mixq.Model, other: mixq.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = other.forward
    monkeypatch.setattr(other, "forward", lambda ids, **options: forward(ids, **options) * float("nan"))
    with pytest.raises(ModelFileError, match="reference's logits are not finite"):
        perplexity(model, TEXT, reference=other, window=64)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="vocabulary of 64"):
        perplexity(mixq.load(folder(tmp_path / "small", 3, vocab=64)), TEXT)
