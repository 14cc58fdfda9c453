"""mixq beside llama.cpp and torch's int4 operator, in one run: decode and prompts on Mixtral 8x7B's layers.

Contract: every side is a process of its own with random weights of the same shape (see `worker`). They take turns, one
at a time, A B C A B C, each when the machine is quiet (see `quiet`), and the machine's limits are measured between them
(see `peers_probe`). `--write` keeps one file for each kind of CPU, with a part for each mode.

    python tests/bench/peers.py --llama-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from mixq.system.cores import physical_cores  # noqa: E402
from tests.accept.tables import RESULTS, write  # noqa: E402
from tests.bench import peers_sides  # noqa: E402
from tests.bench.cpu import Cpu  # noqa: E402
from tests.bench.peers_probe import Probe  # noqa: E402
from tests.bench.peers_report import Measured, page, section  # noqa: E402
from tests.bench.peers_sides import MEASURES, MODES, SIDES, Mode, chosen  # noqa: E402
from tests.bench.quiet import QUIET, Turn, quiet_turn  # noqa: E402
from tests.bench.worker import SideError, Worker, say  # noqa: E402

PAUSE = 0.1
"""Seconds between turns: threads of the last side may spin a while before they sleep."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 where a side is missing."""
    arguments = _parse(argv)
    mode, cpu = chosen(arguments), Cpu.read()
    try:
        measured, probe = run(mode, cpu, arguments)
    except SideError as error:
        print(error, file=sys.stderr)
        return 2
    how, tables = section(measured, probe, mode, arguments)
    if arguments.write:
        path = RESULTS / f"peers_{cpu.kind}.md"
        title, introduction, parts = page(cpu, mode, how, tables, path.read_text() if path.exists() else "")
        write(path.stem, title, introduction, *parts)
    else:
        print("\n".join((f"{cpu}. {mode.title}: {how}", "", *tables)))
    if arguments.json:
        content = {
            "cpu": {**asdict(cpu), "kind": cpu.kind},
            "mode": arguments.mode,
            "threads": peers_sides.threads_of(mode, arguments),
            "layers": arguments.layers,
            "rounds": arguments.rounds,
            "limits": probe.figures,
            "sides": {name: asdict(side) for name, side in measured.items()},
        }
        arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def run(mode: Mode, cpu: Cpu, arguments: argparse.Namespace) -> tuple[dict[str, Measured], Probe]:
    """Start the sides, warm them up, let them take turns.

    Raises:
        SideError: one did not start, or ended.
    """
    peers_sides.check(mode, arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixq-peers-", dir=arguments.folder)))
        measures = [MEASURES[name] for name in mode.measures]
        probe = Probe(cpu, peers_sides.threads_of(mode, arguments), measures, folder, avx2=mode.avx2)
        beside: list[int] = []
        if mode.busy:
            process = peers_sides.busy_process()
            stack.callback(process.wait)
            stack.callback(process.kill)
            beside.append(process.pid)
        started: dict[str, Worker] = {}
        measured: dict[str, Measured] = {}
        for name in mode.sides:
            say(f"{SIDES[name].title}: loading")
            log = stack.enter_context((folder / f"{name}.log").open("w+b"))
            start = functools.partial(peers_sides.start, name, mode, arguments, folder, log)
            worker = start()
            stack.callback(worker.close)
            description = worker.description()
            peers_sides.check_build(mode, name, description.build)
            measured[name] = Measured(SIDES[name].title + mode.suffix, description)
            if mode.in_turns:
                started[name] = worker
                for measure, tokens in (("prefill", 128), ("decode", 4)):
                    worker.seconds(measure, tokens)
            else:
                worker.close()
        turns = _Turns(arguments, beside)
        for number in range(1, arguments.rounds + 1):
            for row, threads, figure in probe.measurements():
                turn = turns.take(f"round {number}: {row}, {threads} threads", figure, os.getpid())
                probe.add(row, threads, turn.figure)
            for measure in mode.measures:
                for name in mode.sides:
                    what = f"round {number} of {arguments.rounds}: {MEASURES[measure].title}, {measured[name].title}"
                    if mode.in_turns:
                        worker, tokens = started[name], MEASURES[measure].tokens
                        ask = functools.partial(worker.seconds, MEASURES[measure].what, tokens)
                        turn = turns.take(what, ask, worker.process.pid)
                    else:
                        turn, tokens = _start_anew(name, mode, arguments, folder), 1
                    measured[name].rates.setdefault(measure, []).append(tokens / turn.figure)
                    measured[name].others.setdefault(measure, []).append(turn.others)
                    say(f"{what}: {tokens / turn.figure:.1f} a second")
    return measured, probe


class _Turns:
    """Measures when the machine is quiet."""

    def __init__(self, arguments: argparse.Namespace, beside: Sequence[int]) -> None:
        self.patience = arguments.patience
        self.beside = beside

    def take(self, what: str, measure: Callable[[], float], process: int) -> Turn:
        time.sleep(PAUSE)
        turn = quiet_turn(measure, process, self.patience, beside=self.beside)
        if turn.others > QUIET:
            say(f"{what}: others took {turn.others:.0%} of the CPUs")
        return turn


def _start_anew(name: str, mode: Mode, arguments: argparse.Namespace, folder: Path) -> Turn:
    with (folder / f"{name}.log").open("w+b") as log:
        worker = peers_sides.start(name, mode, arguments, folder, log)
        try:
            return Turn(worker.description().first_token, 0.0)
        finally:
            worker.close()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="peers.py",
        description="mixq beside llama.cpp and torch's int4 operator, in one run, taking turns: Mixtral 8x7B's layers "
        "with random weights. Prints Markdown. Four layers need about 4 GB of memory for each side, and 3.4 GB of disk "
        "for each of llama.cpp's files while it runs.",
        epilog="Modes: "
        + "; ".join(f"{name}: {mode.title} ({', '.join(mode.sides)})" for name, mode in MODES.items())
        + ". Sides: "
        + "; ".join(f"{name}: {side.title}" for name, side in SIDES.items())
        + ".",
    )
    parser.add_argument("--mode", default="all", choices=list(MODES), help="what is compared (default: %(default)s)")
    parser.add_argument("--sides", help="which, with commas (default: the mode's)")
    parser.add_argument("--measures", help=f"which of {', '.join(MEASURES)}, with commas (default: the mode's)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of Mixtral's 32 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="of each side (default: %(default)s)")
    parser.add_argument("--folder-side", action="store_true", help="mixq loads model folders; llama.cpp maps its file")
    parser.add_argument(
        "--llama-python", default=sys.executable, help="interpreter with llama-cpp-python and gguf (default: this one)"
    )
    parser.add_argument("--llama-python-avx2", default=sys.executable, help="the same, built for AVX2, for --mode avx2")
    parser.add_argument(
        "--patience",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how long to wait for a quiet machine in each turn; 0 takes it as it is (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument(
        "--write", action="store_true", help="write the mode's part of tests/accept/results/peers_KIND-OF-CPU.md"
    )
    arguments = parser.parse_args(argv)
    for what, known in (("sides", SIDES), ("measures", MEASURES)):
        given = getattr(arguments, what)
        names = [] if given is None else [name.strip() for name in given.split(",")]
        for name in names:
            if name not in known:
                parser.error(f"unknown {what.removesuffix('s')} {name!r}; there are {', '.join(known)}")
        setattr(arguments, what, names)
    for option, least in (("rounds", 1), ("layers", 2), ("threads", 1)):  # llama.cpp leaves out most of the last layer
        if getattr(arguments, option) < least:
            parser.error(f"--{option} must be {least} or more")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
