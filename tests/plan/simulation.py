"""Mixtral 8x7B on computers from an 8 GB laptop to a 24 GB desktop, in every miss mode, on a virtual clock.

`python -m tests.plan.simulation` prints the table. Mixtral's sizes with fewer layers: what a layer costs and the slots
that it has stay the same, and tokens per second are given for 32 layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mixq.experts import quota
from mixq.experts.cost import ModelCost
from mixq.experts.routing import draw_trace, parse_routing
from mixq.plan.replay import ReplayResult, Trace, replay
from tests.plan.computers import COMPUTERS, Computer

MIXTRAL = ModelCost(
    layers=32,
    experts=8,
    active=2,
    expert_bytes=93_700_000,
    trunk_bytes=24_800_000,
    head_bytes=133_000_000,
    kv_bytes=4096,
    expert_flops=352_000_000,
)
LAYERS = 8
MODES = {
    "cpu": ("cpu", "lru"),
    "fetch": ("fetch", "lru"),
    "auto": ("auto", "lru"),
    "cpu, fixed slots": ("cpu", "static"),
}
"""Miss mode and cache policy of each way. With fixed slots nothing is ever copied."""


@dataclass(frozen=True, slots=True)
class Case:
    """One computer with one routing."""

    computer: str
    routing: str
    slots: int
    results: dict[str, ReplayResult]

    def speed(self, mode: str) -> float:
        """Tokens per second of the model with all its layers."""
        return self.results[mode].tokens_per_second * LAYERS / MIXTRAL.layers

    @property
    def better(self) -> float:
        """Tokens per second of the better of the two simple modes."""
        return max(self.speed("cpu"), self.speed("fetch"))


def routing(name: str, tokens: int) -> Trace:
    """Return a trace of the simulated layers, see `mixq.experts.routing`."""
    shape = {"layers": LAYERS, "experts": MIXTRAL.experts, "active": MIXTRAL.active}
    return draw_trace(parse_routing(name, seed=1, **shape), tokens, **shape).tokens


def run(computer: Computer, trace: Trace, slots: int, mode: str) -> ReplayResult:
    """Return one replay with so many slots over 32 layers, in proportion over fewer."""
    model = replace(MIXTRAL, layers=LAYERS, head_bytes=MIXTRAL.head_bytes * LAYERS // MIXTRAL.layers)
    quotas = quota.even(slots * LAYERS // MIXTRAL.layers, LAYERS, MIXTRAL.experts)
    miss, policy = MODES[mode]
    return replay(trace, computer.hardware, model, quotas, policy, miss)


def cases(tokens: int) -> Iterator[Case]:
    """Yield every computer with every routing, with the slots that its GPU has room for."""
    for name in ("uniform", "sticky:0.39", "mixtral"):
        trace = routing(name, tokens)
        for key, computer in COMPUTERS.items():
            slots = computer.slots(MIXTRAL)
            yield Case(key, name, slots, {mode: run(computer, trace, slots, mode) for mode in MODES})


def table(tokens: int = 500) -> str:
    """Return the comparison in markdown."""
    lines = [
        "| computer | slots a layer | routing | cpu, tok/s | cpu, fixed slots | fetch | auto | auto to cpu or fetch "
        "| hits: cpu | auto | GB copied a token: cpu | auto | auto: share of the limit | two or more busy |",
        "|" + "---|" * 14,
    ]
    for case in cases(tokens):
        cpu, auto = case.results["cpu"], case.results["auto"]
        scale = MIXTRAL.layers / LAYERS / tokens / 1e9
        speeds = " | ".join(f"{case.speed(mode):.1f}" for mode in ("cpu", "cpu, fixed slots", "fetch", "auto"))
        lines.append(
            f"| {COMPUTERS[case.computer].hardware.name} | {case.slots / MIXTRAL.layers:.1f} | {case.routing} | "
            f"{speeds} | {case.speed('auto') / case.better:.2f} | {cpu.hit_rate:.2f} | {auto.hit_rate:.2f} | "
            f"{cpu.copied_bytes * scale:.2f} | {auto.copied_bytes * scale:.2f} | {auto.share_of_limit:.0%} | "
            f"{auto.overlap_seconds / auto.seconds:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
