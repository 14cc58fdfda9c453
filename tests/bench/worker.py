"""One side of a comparison as a process of its own, so that no two thread pools compete: it waits for its turn.

Contract: `serve`, in the worker, sends a `Description`, then for every request {"measure": "decode" or "prefill",
"tokens": n} on standard input answers {"seconds": s}. `Worker`, in the parent, starts one and asks. Lines of JSON; what
libraries print goes to standard error. Standard library only: a worker may run in another interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Description:
    """What a side is."""

    build: str  # its version and instruction set
    bytes_per_token: int  # of the weights that one token reads
    limits: str = ""  # what it leaves out
    first_token: float = 0.0  # seconds from the start of loading to the first token


class SideError(Exception):
    """A side that could not start or went away; the text is for the user."""


def serve(description: Description, decode: Callable[[int], None], prefill: Callable[[int], None]) -> None:
    """Answer requests until standard input ends.

    Args:
        description: sent first, when the weights are ready.
        decode: run n tokens one after the other, from an empty KV cache.
        prefill: run a prompt of n tokens, from an empty KV cache.
    """
    measures = {"decode": decode, "prefill": prefill}
    print(json.dumps(asdict(description)), file=_answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        started = time.perf_counter()
        measures[request["measure"]](request["tokens"])
        print(json.dumps({"seconds": time.perf_counter() - started}), file=_answers, flush=True)


@contextlib.contextmanager
def answers_on_stdout() -> Any:
    """Keep standard output for answers: what anyone else prints there goes to standard error."""
    global _answers
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as _answers:
        os.dup2(2, 1)
        yield


_answers = sys.stdout


class Worker:
    """A started side.

    Args:
        python: the interpreter.
        module: with a `main` that serves.
        arguments: of the module.
        log: file for what the side prints.
        environment: added to the parent's.
    """

    def __init__(
        self, python: str, module: str, arguments: Sequence[str], log: BinaryIO, environment: Mapping[str, str]
    ) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **environment},
            text=True,
        )

    def description(self) -> Description:
        """Wait until the side is ready.

        Raises:
            SideError: it was not.
        """
        return Description(**self._answer())

    def seconds(self, measure: str, tokens: int) -> float:
        """Let the side run once."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"measure": measure, "tokens": tokens}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise SideError(self._last_words()) from None
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the side."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise SideError(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").strip().splitlines()
        return "\n".join(said[-12:]) or f"it ended with status {self.process.returncode} and said nothing"


def say(text: str) -> None:
    """Print a line of progress, apart from the results."""
    print(text, file=sys.stderr, flush=True)
