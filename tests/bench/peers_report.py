"""The tables of peers.py, and the file that keeps those of one kind of CPU.

Contract: `section` makes the text of one mode; `merged` puts it into the file's text, whose other modes stay as they
were. A section begins with its title in bold.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.accept.tables import PEERS_TITLE, markdown
from tests.accept.worst_ratios import RATIO
from tests.bench.cpu import Cpu
from tests.bench.peers_probe import Probe
from tests.bench.peers_sides import LLAMA, MEASURES, MIXQ, MODES, SIDES, Mode, threads_of
from tests.bench.quiet import QUIET
from tests.bench.worker import Description

HIDDEN, FFN, KV, LAYERS = 4096, 14336, 1024, 32
"""Of Mixtral 8x7B."""


@dataclass(slots=True)
class Measured:
    """A side's figures by measure, one a round: turns a second times tokens, and the CPUs' share that others took."""

    title: str
    description: Description
    rates: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)


def section(
    measured: Mapping[str, Measured], probe: Probe, mode: Mode, arguments: argparse.Namespace
) -> tuple[str, list[str]]:
    """Return how a mode was measured, and its Markdown tables: limits, figures, ratios, builds."""
    tables = [_limits(probe), _figures(measured, probe, mode, arguments), _ratios(measured, mode, arguments.layers)]
    tables.append(_builds(measured))
    return _how(measured, probe, mode, arguments), [table for table in tables if table]


def page(cpu: Cpu, mode: Mode, how: str, tables: Sequence[str], old: str) -> tuple[str, str, list[str]]:
    """Return title, introduction and tables of the CPU's file, with one mode's section new.

    Args:
        old: the file's text; "" for a new one.
    """
    parts = dict(re.findall(r"^\*\*(.+?)\.\*\* (.*?)(?=^\*\*|\Z)", old, re.DOTALL | re.MULTILINE))
    parts[mode.title] = f"{how}\n\n" + "\n".join(tables)
    in_order = sorted(parts, key=[each.title for each in MODES.values()].index)
    introduction = (
        f"{cpu}. Mixtral 8x7B's sizes with random weights; the programs take turns in each round; median "
        "[lowest-highest] of the rounds, also for ratios, which are formed in each round. Made by "
        "`python tests/bench/peers.py --write`, one run for each part."
    )
    return (
        PEERS_TITLE.removeprefix("# ") + cpu.title,
        introduction,
        [f"**{name}.** {parts[name].strip()}\n" for name in in_order],
    )


def _how(measured: Mapping[str, Measured], probe: Probe, mode: Mode, arguments: argparse.Namespace) -> str:
    turns = [share for side in measured.values() for shares in side.others.values() for share in shares]
    loud = sum(share > QUIET for share in turns)
    threads = threads_of(mode, arguments)
    sides = [SIDES[name] for name in measured]
    said = [
        f"{threads} {'thread' if threads == 1 else 'threads'}, {arguments.layers} layers and the head, "
        f"{arguments.rounds} rounds" + ("; tokens/s." if mode.in_turns else ".")
    ]
    if "decode" in mode.measures:
        said.append(
            f"Decode: {MEASURES['decode'].tokens} tokens from an empty KV cache; GB/s: bytes of weights that a token "
            "reads, times tokens/s; of bandwidth: of the read bandwidth in the same round."
        )
    if "prompt-512" in mode.measures:
        said.append("GFLOPS: in the products of the layers' matrices, at 512 tokens.")
        if any(side.module == LLAMA for side in sides):
            said.append(
                "llama.cpp computes the experts of the last layer for a prompt's last token only; the ratios of "
                f"prompts are scaled from {arguments.layers} layers to Mixtral's {LAYERS}."
            )
        if probe.int8_limits():
            said.append(
                "Of int8: of the dot products per second above, with the best vector instructions and with AMX."
            )
    if not mode.in_turns:
        said.append("Each program starts anew, its files in the page cache; seconds without the start of Python.")
    if mode.avx2:
        said.append(
            "mixq: MIXQ_CPU_ISA=avx2, and torch limited to AVX2. llama.cpp: built for AVX2, FMA, F16C and BMI2."
        )
    if mode.busy:
        said.append("A process that never sleeps runs at the same priority.")
    if any(side.module == MIXQ for side in sides) and not any(side.is_folder for side in sides):
        said.append("mixq's weights are made in memory, in huge pages" + _read_into_memory(sides))
    limits = [f"{side.title}: {side.description.limits}." for side in measured.values() if side.description.limits]
    said += limits
    if loud:
        said.append(f"In {loud} of {len(turns)} turns others took more than {QUIET:.0%} of the CPUs.")
    return " ".join(said)


def _read_into_memory(sides: Sequence[object]) -> str:
    llama = any(getattr(side, "module", None) == LLAMA for side in sides)
    return "; llama.cpp's are read into memory, not mapped." if llama else "."


def _limits(probe: Probe) -> str:
    rows = []
    for name, figures in probe.figures.items():
        digits = 1 if "GB/s" in name else 0
        rows.append([name, *(spread(figures[count], digits) for count in probe.threads)])
    heads = [f"{count} {'thread' if count == 1 else 'threads'}" for count in probe.threads]
    return markdown(["limit in the same run", *heads], rows) if rows else ""


def _builds(measured: Mapping[str, Measured]) -> str:
    titles: dict[str, list[str]] = {}
    for side in measured.values():
        titles.setdefault(side.description.build, []).append(side.title)
    return markdown(["", "build"], [["; ".join(names), build] for build, names in titles.items()])


def _figures(measured: Mapping[str, Measured], probe: Probe, mode: Mode, arguments: argparse.Namespace) -> str:
    rows = []
    for name, side in measured.items():
        size = side.description.bytes_per_token
        row = {"": side.title, "MB per token": f"{size / 1e6:.0f}"}
        for measure in mode.measures:
            title, rates = MEASURES[measure].title, side.rates[measure]
            if measure == "first-token":
                row[title] = f"{spread([1 / rate for rate in rates], 2)} s"
                continue
            row[title] = spread(rates)
            if measure == "decode":
                row["GB/s"] = f"{size * statistics.median(rates) / 1e9:.1f}"
                if probe.reads():
                    shares = ratios([size * rate / 1e9 for rate in rates], probe.reads())
                    row["of bandwidth"] = f"{statistics.median(shares):.0%}"
            elif measure == "prompt-512":
                speed = 2 * weights(name, arguments.layers) * statistics.median(rates) / 1e9
                row["GFLOPS"] = f"{speed:.0f}"
                for kind, limit in probe.int8_limits().items():
                    row[f"of {kind}"] = f"{speed / limit:.0%}"
        rows.append(row)
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def _ratios(measured: Mapping[str, Measured], mode: Mode, layers: int) -> str:
    ours = [name for name in measured if SIDES[name].module == MIXQ]
    peers = [name for name in measured if SIDES[name].module == LLAMA]
    pairs = [(a, b) for a in ours for b in peers]
    pairs += [
        (name, name.removesuffix("-folder")) for name in ours if name.removesuffix("-folder") in set(ours) - {name}
    ]
    rows = []
    for a, b in pairs:
        row = [measured[a].title, measured[b].title]
        for measure in mode.measures:
            ours, theirs = (_scaled(name, measured[name].rates[measure], measure, layers) for name in (a, b))
            row.append(spread(ratios(ours, theirs), 2))
        rows.append(row)
    return markdown(["", RATIO, *(MEASURES[measure].title for measure in mode.measures)], rows) if rows else ""


def spread(figures: Sequence[float], digits: int = 1) -> str:
    """Return the median [lowest-highest]."""
    return f"{statistics.median(figures):.{digits}f} [{min(figures):.{digits}f}-{max(figures):.{digits}f}]"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of each round: neighbours in time share what the machine's bandwidth was then."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def weights(name: str, layers: int) -> int:
    """Return how many weights multiply each token of a prompt, but for the last token.

    llama.cpp computes the last layer's experts for the prompt's last token only, and both the head; torch's side has
    experts alone.
    """
    experts, attention = 2 * 3 * HIDDEN * FFN, 2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV
    if SIDES[name].module == LLAMA:
        return (layers - 1) * experts + layers * attention
    return layers * (experts + (attention if SIDES[name].module == MIXQ else 0))


def _scaled(name: str, rates: Sequence[float], measure: str, layers: int) -> list[float]:
    """Return the rates of prompts as all of Mixtral's layers would have them, at the same products per second."""
    if MEASURES[measure].what != "prefill":
        return list(rates)
    return [rate * weights(name, layers) / weights(name, LAYERS) for rate in rates]
