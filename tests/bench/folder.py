"""A model folder beside the same weights in anonymous huge pages, and beside llama.cpp from start to first token.

Contract: every side is a process of its own (see `worker`); they take turns, one at a time. The folder's files are in
the page cache, in huge pages or in pages of 4 KiB, before it is loaded. Ratios are medians of the rounds.

    python tests/bench/folder.py --llama-python VENV/bin/python
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from mixq.config import format_size  # noqa: E402
from mixq.measure.speed.write_folder import FolderJob  # noqa: E402
from tests.accept.tables import markdown, write  # noqa: E402
from tests.bench import page_walks  # noqa: E402
from tests.bench.cpu import Cpu  # noqa: E402
from tests.bench.page_cache import HUGE, SMALL, bring_into_cache  # noqa: E402
from tests.bench.peers_sides import HUGE_PAGES, MIXQ  # noqa: E402
from tests.bench.quiet import quiet_turn  # noqa: E402
from tests.bench.worker import SideError, Worker, say  # noqa: E402

FOLDER, LLAMA = "tests.bench.folder_side", "tests.bench.llama_cpp_side"
MEMORY = "the same weights in anonymous huge pages"
TOKENS = 16


@dataclass(frozen=True, slots=True)
class Side:
    """A way to have the weights: the worker's module, its files' state in the page cache, and an argument."""

    module: str
    cached: str | None = None
    argument: str | None = None


SIDES = {
    MEMORY: Side(MIXQ),
    "folder, page cache in huge pages": Side(FOLDER, HUGE),
    "folder, page cache in pages of 4 KiB": Side(FOLDER, SMALL),
    "the same, left mapped": Side(FOLDER, SMALL, "--mapped"),
    "llama.cpp, Q4_0, page cache in huge pages": Side(LLAMA, HUGE, "--mapped"),
    "llama.cpp, Q4_0, page cache in pages of 4 KiB": Side(LLAMA, SMALL, "--mapped"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a side, one figure a round."""

    ways: list[str]  # how the weights are in memory
    rates: list[float]  # tokens a second
    first: list[float]  # seconds from the start of loading to the first token


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 2 if a side is missing."""
    arguments = _parse(argv)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mixq-folder-", dir=arguments.folder)))
            reading = page_walks.table(folder, arguments.threads, arguments.rounds)
            measured = run(folder, arguments)
    except OSError as error:
        print(f"page_walks.c was not compiled: {error}", file=sys.stderr)
        return 2
    except SideError as error:
        print(error, file=sys.stderr)
        return 2
    how, table = report(measured, arguments)
    if arguments.write:
        write("folder", "A model folder in huge pages", how, table, reading)
    else:
        print("\n".join((how, "", table, reading)))
    return 0


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, Measured]:
    """Measure decoding with mixq's sides loaded, then loading, each side anew in each round.

    Raises:
        SideError: a side did not start, or ended.
    """
    sides = {title: side for title, side in SIDES.items() if side.module != LLAMA or arguments.llama_python is not None}
    measured = {title: Measured([], [], []) for title in sides}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for title, side in sides.items():
            say(f"{title}: loading")
            worker = _start(title, side, folder, arguments, stack)
            measured[title].ways.append(worker.description().build)
            if side.module != LLAMA:
                workers[title] = worker
            else:  # it has made its file
                worker.close()
        for _ in range(arguments.rounds):
            for title, worker in workers.items():
                ask = functools.partial(worker.seconds, "decode", TOKENS)
                turn = quiet_turn(ask, worker.process.pid, arguments.patience)
                measured[title].rates.append(TOKENS / turn.figure)
                say(f"{title}: {measured[title].rates[-1]:.1f} tokens/s")
    for _ in range(arguments.rounds):
        for title, side in sides.items():
            if side.cached is None:
                continue
            with ExitStack() as stack:
                seconds = _start(title, side, folder, arguments, stack).description().first_token
            measured[title].first.append(seconds)
            say(f"{title}: first token after {seconds:.2f} s")
    return measured


def _start(title: str, side: Side, folder: Path, arguments: argparse.Namespace, stack: ExitStack) -> Worker:
    """Bring the side's files into the page cache, and start it."""
    own = ["--threads", str(arguments.threads), *([side.argument] if side.argument is not None else [])]
    files = folder / title.replace(", ", "-").replace(" ", "-")  # of its own: the page cache has one state
    if side.module == FOLDER:
        if not files.exists():
            FolderJob(files, "mixtral-8x7b", layers=arguments.layers, mix=arguments.mix).run()
        own += ["--folder", str(files)]
    elif side.module == LLAMA:
        own += ["--layers", str(arguments.layers), "--recipe", "q4_0-pure", "--file", str(files)]
    else:
        own += ["--layers", str(arguments.layers), "--mix", arguments.mix]
    if side.cached is not None:
        for path in [files] if files.is_file() else files.glob("*.safetensors"):
            bring_into_cache(path, side.cached)
    log: BinaryIO = stack.enter_context((folder / "log").open("w+b"))
    python = arguments.llama_python if side.module == LLAMA else sys.executable
    worker = Worker(python, side.module, own, log, HUGE_PAGES)
    stack.callback(worker.close)
    return worker


def report(measured: Mapping[str, Measured], arguments: argparse.Namespace) -> tuple[str, str]:
    """Return how it was measured, and the table."""
    how = (
        f"{Cpu.read()}. {arguments.threads} threads. Mixtral 8x7B's sizes, layers: {arguments.layers}, and the head, "
        f"--mix {arguments.mix}, random weights; {arguments.rounds} rounds in which the processes take turns; median "
        f"[lowest-highest]. Decode: {TOKENS} tokens from an empty KV cache, from the second token after loading on. "
        "Load and first token: the files have just come into the page cache; llama.cpp maps its file and repacks what "
        "it can; without the start of Python. Below: how fast a plain "
        f"loop reads {format_size(page_walks.NBYTES)} in pages of each kind; where translating addresses ahead makes "
        "pages of 4 KiB as fast as huge pages, address translation was the cost. "
        "Made by `python tests/bench/folder.py --write`."
    )
    rows = []
    memory = measured[MEMORY]
    for title, side in measured.items():
        peers = [name for name, other in SIDES.items() if other.module == LLAMA and other.cached == SIDES[title].cached]
        llama = measured.get(peers[0]) if peers and SIDES[title].module == FOLDER else None
        rows.append(
            [
                title,
                side.ways[0],
                _spread(side.rates, "{:.1f}"),
                _ratio(side.rates, memory.rates),
                _spread(side.first, "{:.2f} s"),
                _ratio(side.first, llama.first if llama is not None else []),
            ]
        )
    header = ["", "weights", "decode, tokens/s", "ratio to memory", "load and first token", "ratio to llama.cpp"]
    return how, markdown(header, rows)


def _spread(figures: Sequence[float], form: str) -> str:
    if not figures:
        return ""
    number = form.partition("}")[0] + "}"
    between = f" [{number.format(min(figures))}-{number.format(max(figures))}]"
    return number.format(statistics.median(figures)) + between + form.partition("}")[2]


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median ratio of a round: neighbours in time share what the machine's speed was then."""
    if not ours or not theirs or ours is theirs:
        return ""
    return f"{statistics.median(a / b for a, b in zip(ours, theirs, strict=True)):.2f}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="folder.py",
        description="A model folder beside the same weights in anonymous huge pages: decoding, and the time from the "
        "start to the first token. Prints Markdown. Each layer needs 5 GB of memory and 3 GB of disk.",
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=2, help="of Mixtral's 32 (default: %(default)s)")
    parser.add_argument("--mix", default="all-nl4", help="schemes of the weights (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each side (default: %(default)s)")
    parser.add_argument("--llama-python", help="interpreter with llama-cpp-python and gguf; left out, mixq alone")
    parser.add_argument(
        "--patience",
        type=float,
        default=30,
        metavar="SECONDS",
        help="how long to wait for a quiet machine in each turn; 0 takes it as it is (default: %(default)s)",
    )
    parser.add_argument("--folder", type=Path, help="where the temporary files go (default: the system's)")
    parser.add_argument("--write", action="store_true", help="write tests/accept/results/folder.md")
    arguments = parser.parse_args(argv)
    for option in ("rounds", "layers", "threads"):
        if getattr(arguments, option) < 1:
            parser.error(f"--{option} must be 1 or more")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
