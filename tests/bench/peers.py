"""mixq beside llama.cpp and torch's int4 operator, in one run: decode and prefill on Mixtral 8x7B's layers.

Contract: every side is a process of its own with synthetic weights of the same shape (see `worker`). They take turns,
one at a time, A B C A B C, each when the machine is quiet (see `quiet`); a figure is the median of the rounds. Weights
lie in huge pages, for every side, where the system gives them.

    python tests/bench/peers.py --llama-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from tests.accept.tables import markdown, write  # noqa: E402
from tests.bench.quiet import QUIET, quiet_turn  # noqa: E402
from tests.bench.worker import Description, SideError, Worker  # noqa: E402

LLAMA, MIXQ, TORCH = (f"tests.bench.{name}_side" for name in ("llama_cpp", "mixq", "torch_int4"))


@dataclass(frozen=True, slots=True)
class Side:
    """What can be compared: the worker's module and its arguments."""

    title: str
    module: str
    arguments: tuple[str, ...] = ()


SIDES = {
    "mixq": Side("mixq, default mix", MIXQ, ("--mix", "default")),
    "mixq-nl4": Side("mixq, nl4 throughout", MIXQ, ("--mix", "all-nl4")),
    "llama": Side("llama.cpp, Q4_0 throughout", LLAMA, ("--recipe", "q4_0-pure")),
    "llama-q4_0": Side("llama.cpp, Q4_0 as llama-quantize makes it", LLAMA, ("--recipe", "q4_0")),
    "llama-q4_k_s": Side("llama.cpp, Q4_K_S", LLAMA, ("--recipe", "q4_k_s")),
    "torch": Side("torch, int4 operator", TORCH),
}
DEFAULT_SIDES = ("mixq", "mixq-nl4", "llama", "torch")
MEASURES = {"decode": ("decode", 16), "prefill 512": ("prefill", 512), "prefill 128": ("prefill", 128)}
"""What a turn asks for, and how many tokens it runs."""

HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""For llama.cpp: its weights are allocated by malloc, which does not ask for huge pages by itself."""

PAUSE = 0.1
"""Seconds between turns: threads of the last side may spin a while before they sleep."""


@dataclass(slots=True)
class Measured:
    """A side's figures by measure, one a round: tokens a second, and the share of the CPUs that others took then."""

    title: str
    description: Description
    rates: dict[str, list[float]] = field(default_factory=dict)
    others: dict[str, list[float]] = field(default_factory=dict)

    def median(self, measure: str) -> float:
        return statistics.median(self.rates[measure])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 where a side is missing."""
    arguments = _parse(argv)
    try:
        measured = run(arguments)
    except SideError as error:
        print(error, file=sys.stderr)
        return 2
    how, tables = report(measured, arguments)
    if arguments.write:
        write("peers", "mixq, llama.cpp and torch", how, *tables)
    else:
        print("\n".join((how, "", *tables)))
    if arguments.json:
        content = {
            "cpu": _cpu(),
            "threads": arguments.threads,
            "layers": arguments.layers,
            "rounds": arguments.rounds,
            "sides": {name: asdict(side) for name, side in measured.items()},
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def run(arguments: argparse.Namespace) -> dict[str, Measured]:
    """Start the sides, warm them up, let them take turns.

    Raises:
        SideError: one did not start, or ended.
    """
    sides = {name: SIDES[name] for name in arguments.sides}
    if any(side.module == LLAMA for side in sides.values()):
        _check_llama(arguments.llama_python)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixq-peers-", dir=arguments.folder)))
        workers: dict[str, Worker] = {}
        measured: dict[str, Measured] = {}
        for name, side in sides.items():
            _say(f"{side.title}: loading")
            own = ["--layers", str(arguments.layers), "--threads", str(arguments.threads)]
            if side.module == LLAMA:
                own += ["--file", str(folder / f"{name}.gguf")]
            log = stack.enter_context((folder / f"{name}.log").open("w+b"))
            python = arguments.llama_python if side.module == LLAMA else sys.executable
            worker = Worker(python, side.module, [*side.arguments, *own], log, HUGE_PAGES)
            stack.callback(worker.close)
            workers[name] = worker
            measured[name] = Measured(side.title, worker.description())
            for measure, tokens in (("prefill", 128), ("decode", 4)):
                worker.seconds(measure, tokens)
        for number in range(1, arguments.rounds + 1):
            for title in arguments.measures:
                measure, tokens = MEASURES[title]
                for name, worker in workers.items():
                    time.sleep(PAUSE)
                    run_once = functools.partial(worker.seconds, measure, tokens)
                    turn = quiet_turn(run_once, worker.process.pid, arguments.patience)
                    rate = tokens / turn.seconds
                    measured[name].rates.setdefault(title, []).append(rate)
                    measured[name].others.setdefault(title, []).append(turn.others)
                    _say(
                        f"round {number} of {arguments.rounds}: {title}, {sides[name].title}: {rate:.1f} tokens/s"
                        + (f" (others took {turn.others:.0%} of the CPUs)" if turn.others > QUIET else "")
                    )
    return measured


def report(measured: Mapping[str, Measured], arguments: argparse.Namespace) -> tuple[str, list[str]]:
    """Return how it was measured, and Markdown tables: figures, ratios, builds."""
    notes = "; ".join(f"{side.title}: {side.description.limits}" for side in measured.values() if _limits(side))
    turns = [share for side in measured.values() for shares in side.others.values() for share in shares]
    loud = sum(share > QUIET for share in turns)
    how = (
        f"{_cpu()}, {arguments.threads} threads. Mixtral 8x7B's sizes, {arguments.layers} layers and the head, random "
        f"weights; {arguments.rounds} rounds in which the programs take turns; tokens/s, median [lowest-highest]. "
        f"Decode: {MEASURES['decode'][1]} tokens from an empty KV cache; GB/s: bytes of weights that a token reads, "
        "times tokens/s. GFLOPS: in the products of the layers' matrices, at 512 tokens. "
        + (f"{notes}. " if notes else "")
        + (f"In {loud} of {len(turns)} turns others took more than {QUIET:.0%} of the CPUs. " if loud else "")
        + "Made by `python tests/bench/peers.py --write`."
    )
    rows = []
    for side in measured.values():
        size = side.description.bytes_per_token
        row = {"": side.title, "MB per token": f"{size / 1e6:.0f}"}
        for measure in arguments.measures:
            row[measure] = _spread(side.rates[measure])
            if measure == "decode":
                row["GB/s"] = f"{size * side.median(measure) / 1e9:.1f}"
            elif measure == "prefill 512":
                weights = _weights(arguments.layers, experts_only=bool(_limits(side)))
                row["GFLOPS"] = f"{2 * weights * side.median(measure) / 1e9:.0f}"
        rows.append(row)
    tables = [markdown(list(rows[0]), [list(row.values()) for row in rows])]
    peers = [name for name in measured if SIDES[name].module == LLAMA]
    ours = [name for name in measured if SIDES[name].module == MIXQ]
    if peers and ours:
        ratios = [
            [measured[a].title, measured[b].title]
            + [f"{_ratio(measured[a].rates[m], measured[b].rates[m]):.2f}" for m in arguments.measures]
            for a in ours
            for b in peers
        ]
        tables.append(markdown(["", "median ratio of a round to", *arguments.measures], ratios))
    tables.append(markdown(["", "build"], [[side.title, side.description.build] for side in measured.values()]))
    return how, tables


def _limits(side: Measured) -> str:
    return side.description.limits


def _spread(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.1f} [{min(rates):.1f}-{max(rates):.1f}]"


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median ratio of a round: neighbours in time share what the machine's bandwidth was then."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def _weights(layers: int, *, experts_only: bool) -> int:
    """Return how many weights of Mixtral's layers multiply each token; the head sees only a prompt's last."""
    experts = 2 * 3 * 4096 * 14336
    attention = 0 if experts_only else 2 * 4096 * 4096 + 2 * 1024 * 4096
    return layers * (experts + attention)


def _check_llama(python: str) -> None:
    """Raise SideError where llama-cpp-python is missing."""
    code = "import importlib.util as u, sys; sys.exit(not all(u.find_spec(m) for m in ('llama_cpp', 'gguf')))"
    try:
        found = subprocess.run([python, "-c", code], check=False).returncode == 0
    except OSError as error:
        raise SideError(f"--llama-python {python}: {error.strerror}") from None
    if not found:
        raise SideError(
            f"llama-cpp-python or gguf is missing in {python}. Build it for this CPU (minutes):\n"
            f"    CMAKE_ARGS=-DGGML_NATIVE=ON {python} -m pip install gguf llama-cpp-python\n"
            "or name an interpreter that has both: --llama-python PYTHON; or leave it out: --sides mixq,mixq-nl4,torch"
        )


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers.py",
        description="mixq beside llama.cpp and torch's int4 operator, in one run, taking turns: Mixtral 8x7B's layers "
        "with random weights. Prints Markdown. Four layers need about 4 GB of memory for each side, and 3.4 GB of disk "
        "for llama.cpp's file while it runs.",
        epilog="Sides: " + "; ".join(f"{name}: {side.title}" for name, side in SIDES.items()) + ".",
    )
    parser.add_argument("--sides", default=",".join(DEFAULT_SIDES), help="which, with commas (default: %(default)s)")
    parser.add_argument("--measures", default=",".join(MEASURES), help="which, with commas (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (default: %(default)s)")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="interpreter with llama-cpp-python and gguf (default: this one)"
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how long to wait for a quiet machine in each turn; 0 takes it as it is (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary GGUF file goes (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--write", action="store_true", help="write the table to tests/accept/results/peers.md")
    arguments = parser.parse_args(argv)
    arguments.sides = [name.strip() for name in arguments.sides.split(",")]
    arguments.measures = [name.strip() for name in arguments.measures.split(",")]
    for what, names, known in (("side", arguments.sides, SIDES), ("measure", arguments.measures, MEASURES)):
        for name in names:
            if name not in known:
                parser.error(f"unknown {what} {name!r}; there are {', '.join(known)}")
    for option in ("rounds", "layers", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be 1 or more")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
