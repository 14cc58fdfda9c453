"""Ctrl-C and SIGTERM to a real `mixq quantize`: it says how to go on, leaves nothing half done, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mixq.quantize.job import quantize
from tests.quantize.disasters import contents, write_source

HINT = "interrupted; run the same command again to resume."


COMMAND = ("-m", "mixq")
SLOW_COMMAND = (
    "-c",
    """
import sys, time
from mixq.cli.main import main
from mixq.quantize import job

search = job.search

def slow_search(*arguments, **options):
    time.sleep(0.5)
    return search(*arguments, **options)

job.search = slow_search
main(sys.argv[1:])
""",
)


def signalled(
    source: Path, target: Path, number: int, delay: float = 0.05, command: tuple[str, ...] = COMMAND
) -> tuple[int, str, float]:
    """Start the command, send it a signal some time into a shard; return exit code, what it said and the seconds."""
    arguments = [sys.executable, *command, "quantize", str(source), str(target)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(target.glob("model-*.partial")):
            assert process.poll() is None, "it ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        started = time.perf_counter()
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        return process.returncode, said, time.perf_counter() - started


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_and_gone_on_with(number: int, code: int, tmp_path: Path) -> None:
    source, target = write_source(tmp_path / "source"), tmp_path / "out"
    returned, said, _ = signalled(source, target, number, command=SLOW_COMMAND)
    assert returned == code
    assert HINT in said
    assert "Traceback" not in said
    assert set(contents(target)) == {"job.json"}
    quantize(source, target)
    quantize(source, tmp_path / "expected")
    assert contents(target) == contents(tmp_path / "expected")
