"""lm_eval's local-completions scores a small task of ours, and finds exactly mixq's own figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mixq
from tests.server.running import Running

QUESTIONS = [
    ("The capital of France is", [" Paris", " Rome", " Berlin"], 0),
    ("The capital of Italy is", [" Paris", " Rome", " Berlin"], 1),
    ("2 + 2 =", [" 4", " 5", " 7"], 0),
]
TEXTS = ["The capital of France is Paris.", "What is 25 - (4 * 2) + 3?"]


@pytest.fixture(scope="module")
def results(demo: Running, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tasks")
    patch = pytest.MonkeyPatch()
    for name, value in (("HF_DATASETS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "1"), ("HF_HOME", str(folder / "hf"))):
        patch.setenv(name, value)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    choices = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
    (folder / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"page": text}) + "\n" for text in TEXTS))
    (folder / "choices.yaml").write_text(_task(folder, "choices", _CHOICES))
    (folder / "texts.yaml").write_text(_task(folder, "texts", _TEXTS))
    model_args = f"model=demo,base_url={demo.url}/v1/completions,num_concurrent=4,max_length=512,batch_size=4"
    found = simple_evaluate(
        model="local-completions",
        model_args=model_args,
        tasks=["mixq_choices", "mixq_texts"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    patch.undo()
    assert found is not None
    return dict(found)


def _task(folder: Path, name: str, rest: str) -> str:
    return (
        f"task: mixq_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / name}.jsonl\n"
        f"test_split: test\n{rest}\n"
    )


_CHOICES = """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc"""
_TEXTS = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - metric: word_perplexity"""


def _score(model: mixq.Model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Return the log probability of a continuation, and whether greedy decoding gives it."""
    logits = model.forward([*context, *continuation])[len(context) - 1 : -1]
    distribution = logits[:, : model.vocab_size].log_softmax(-1)
    picked = distribution.gather(1, torch.tensor(continuation)[:, None]).sum()
    return float(picked), distribution.argmax(-1).tolist() == continuation


def test_multiple_choice_scores_are_those_of_the_model(results: dict[str, Any]) -> None:
    model = mixq.load()
    encode = model.tokenizer.encode
    greedy = []
    for sample in results["samples"]["mixq_choices"]:
        question = sample["doc"]["question"]
        for choice, [(logprob, is_greedy)] in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            context = encode(question)
            wanted, wanted_greedy = _score(model, context, encode(question + choice)[len(context) :])
            assert float(logprob) == pytest.approx(wanted, abs=2e-3)
            assert str(is_greedy) == str(wanted_greedy)
            greedy.append(wanted_greedy)
    assert len(greedy) == 9
    assert any(greedy)
    assert not all(greedy)


def test_perplexity_is_that_of_the_model(results: dict[str, Any]) -> None:
    model = mixq.load()
    total = sum(_score(model, [model.tokenizer.bos_id], model.tokenizer.encode(text))[0] for text in TEXTS)
    words = sum(len(text.split()) for text in TEXTS)
    found = results["results"]["mixq_texts"]["word_perplexity,none"]
    assert found == pytest.approx(math.exp(-total / words), rel=2e-3)
