"""`mixq quantize` at full size: from a hub whose bytes are made up as they are asked for, killed in the middle.

    python -m tests.bench.full_size mixtral-8x7b FOLDER [--layers N] [--kill-after N] [--write] [FLAGS]

Runs the command line, with whatever further flags are given, in a process of its own, kills it (SIGKILL) after some
shards and in the middle of one, runs it again, and reports the peak of its memory, the most disk that it held beside
finished shards, and its rates. Then `mixq verify`. `--write` writes tests/accept/results/full_size.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixq.config import format_size
from tests.accept.tables import markdown, write
from tests.bench.made_up_checkpoint import OWNER

POLL = 0.1


@dataclass(slots=True)
class Watched:
    """What was seen of a process from outside."""

    code: int
    seconds: float
    peak_memory: int
    extra_disk: int
    output: dict[str, Any] = field(default_factory=dict)


def watch(arguments: list[str], folder: Path, endpoint: str, kill_after: int | None = None) -> Watched:
    """Run mixq; with `kill_after`, kill it half a shard after so many shards are finished."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint}
    environment.pop("HF_TOKEN", None)
    began, peak, extra, half = time.monotonic(), 0, 0, 0.0
    with subprocess.Popen(
        [sys.executable, "-m", "mixq", *arguments, "--json"], stdout=subprocess.PIPE, env=environment
    ) as process:
        while process.poll() is None:
            time.sleep(POLL)
            peak = max(peak, _peak_of(process.pid))
            extra = max(extra, _unfinished(folder))
            done = len(list(folder.glob("model-*-of-*.safetensors"))) if folder.is_dir() else 0
            if kill_after is not None and done >= kill_after:
                half = half or time.monotonic() + 0.5 * (time.monotonic() - began) / done
                if time.monotonic() > half:
                    process.send_signal(signal.SIGKILL)
        assert process.stdout is not None
        text = process.stdout.read()
    output = json.loads(text) if text else {}
    return Watched(process.returncode, time.monotonic() - began, peak, extra, output)


def _peak_of(process: int) -> int:
    """Return the most physical memory that a process has held, in bytes."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _unfinished(folder: Path) -> int:
    """Return the bytes on the disk that are no finished shard: shards being written, journal, whatever else."""
    if not folder.is_dir():
        return 0
    total = 0
    for path in folder.iterdir():
        if not path.name.endswith(".safetensors") or path.name.startswith("calibration"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kill-after", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    arguments, flags = parser.parse_known_args()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    serve = [sys.executable, "-m", "tests.bench.made_up_checkpoint", arguments.preset]
    serve += ["--layers", str(arguments.layers)] if arguments.layers else []
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdout is not None
        endpoint = hub.stdout.readline().strip()
        try:
            command = ["quantize", f"{OWNER}/{arguments.preset}", str(arguments.folder), *flags]
            runs = [watch(command, arguments.folder, endpoint, arguments.kill_after)]
            assert runs[0].code == -signal.SIGKILL, runs[0]
            runs.append(watch(command, arguments.folder, endpoint))
            assert runs[1].code == 0, runs[1]
        finally:
            hub.kill()
    checked = watch(["verify", str(arguments.folder)], arguments.folder, endpoint)
    result = runs[1].output
    size = sum(path.stat().st_size for path in arguments.folder.iterdir())
    largest = max(path.stat().st_size for path in arguments.folder.glob("model-*.safetensors"))
    weights = result["sizes"]["weights"]
    seconds = sum(run.seconds for run in runs)
    rows = [
        ["weights", f"{weights / 1e9:.1f} billion, {format_size(result['sizes']['source_bytes'])} at the hub"],
        ["folder", f"{format_size(size)}, {len(list(arguments.folder.glob('model-*.safetensors')))} shards"],
        ["peak memory", format_size(max(run.peak_memory for run in runs))],
        ["peak disk use besides finished shards", f"{format_size(max(run.extra_disk for run in runs))} "
         f"(the largest shard has {format_size(largest)})"],
        ["killed (SIGKILL)", f"after {result['shards_done_before']} finished shards, in the middle of the next"],
        ["time", f"{runs[0].seconds:.0f} s until it was killed, {runs[1].seconds:.0f} s after"],
        ["rate", f"{result['weights_per_second'] / 1e6:.0f} M weights/s"],
        ["read from the hub", f"{format_size(2 * result['weights_per_second'])}/s"],
        ["written to the disk", f"{format_size(size / seconds)}/s"],
        ["mixq verify", f"{'all as written' if checked.output.get('ok') else 'PROBLEMS'}, {checked.seconds:.0f} s"],
    ]  # fmt: skip
    table = markdown(["Mixtral 8x7B" if arguments.preset == "mixtral-8x7b" else arguments.preset, ""], rows)
    print(table)
    if arguments.write:
        how = (
            "The source is a simulated hub on the same machine, which serves made-up weights, so hub, job and search "
            "share two cores; a real network would limit the speed. Made by `python -m tests.bench.full_size "
            "mixtral-8x7b FOLDER --write`."
        )
        write("full_size", "Quantizing at full size", how, table)


if __name__ == "__main__":
    main()
