"""The planner's predictions against the bench's measurements on this machine, the two in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import mixq
from mixq.config import RuntimeOptions
from mixq.engine.model import Model
from mixq.measure.machine.probe import probe
from mixq.measure.machine.probe_gpu import simulated
from mixq.measure.speed.measure import Bench
from mixq.measure.speed.synthetic import synthetic_model
from mixq.measure.speed.workload import workloads
from mixq.plan.planner import plan
from mixq.plan.sizes import ModelSizes
from tests.accept.tables import markdown, write

pytestmark = pytest.mark.accept
TURNS, SECONDS = 7, 3.0
PROMPT, TOKENS, CONTEXT = 512, 64, 640


@dataclass(frozen=True)
class Case:
    """A model on a device."""

    name: str
    device: str
    vram: str | None
    format: str

    @property
    def options(self) -> dict[str, object]:
        return {"device": self.device, "context": CONTEXT, **({"vram": self.vram} if self.vram else {})}

    def load(self) -> Model:
        if self.name == "the demo model":
            return mixq.load(**self.options)
        return synthetic_model("mixtral-8x7b", layers=4, seed=0, **self.options)


CASES = [
    Case("the demo model", "cpu", None, "bf16"),
    Case("the demo model", "sim", "32MB", "bf16"),
    Case("Mixtral's sizes, 4 layers", "cpu", None, "nl4"),
    Case("Mixtral's sizes, 4 layers", "sim", "2.5GB", "nl4"),
]


def turns(case: Case) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Yield the prediction and the measurement, each (prompt, decode) tokens per second."""
    model = case.load()
    sizes = ModelSizes.of_weights(model.folder, case.format)
    options = RuntimeOptions.from_kwargs(**case.options)
    tests = workloads([PROMPT], [TOKENS], [0])
    bench = Bench(model, tests, repeats=1)
    for _ in range(TURNS):
        computer = probe(refresh=True)
        if case.device == "sim":
            computer = simulated(computer, options.vram)
        predicted = plan(sizes, computer, options, routing="uniform" if "sizes" in case.name else "mixtral")
        measured = _measured(bench)
        yield (predicted.prefill.expected, predicted.decode.expected), (measured[0], measured[1])
    model.close()


def _measured(bench: Bench) -> list[float]:
    """Return tokens per second of each test over some seconds: a step of the demo model is over within one."""
    runs: list[list[float]] = []
    begun = time.perf_counter()
    while not runs or time.perf_counter() - begun < SECONDS:
        runs.append([sample.tokens_per_second for sample in bench.samples()])
    return [statistics.harmonic_mean(speeds) for speeds in zip(*runs, strict=True)]


def test_plans_come_true() -> None:
    rows, worst = [], []
    for case in CASES:
        found = list(turns(case))
        for index, what in enumerate((f"prompt of {PROMPT}", f"{TOKENS} tokens")):
            ratios = [predicted[index] / measured[index] for predicted, measured in found]
            ratio = statistics.median(ratios)
            worst.append(max(ratio, 1 / ratio))
            rows.append(
                [
                    case.name,
                    case.device,
                    what,
                    f"{statistics.median(predicted[index] for predicted, _ in found):.1f}",
                    f"{statistics.median(measured[index] for _, measured in found):.1f}",
                    f"{ratio:.2f}",
                    f"{min(ratios):.2f} to {max(ratios):.2f}",
                ]
            )
    write(
        "plan",
        "Plans: predicted and measured",
        "Tokens per second that `mixq plan` predicts, from speeds measured just before, and that `mixq bench` "
        f"measures; medians of {TURNS} turns, the ratio taken turn by turn. Made by `make accept`.",
        markdown(["model", "device", "test", "predicted", "measured", "ratio", "range of ratios"], rows),
    )
    assert max(worst) <= 1.2, rows
