"""Everything that is to be known of mixq on a GPU, by one script in nine minutes: correctness, kernels, offloading.

Contract: runs from a checkout on a machine with an NVIDIA GPU, torch, Triton, transformers and a C++ compiler; mixq
need not be installed, and nothing is downloaded. The native library is built in place if it is not there. Each section
is a process of its own with a time limit: what fails, hangs or upsets the GPU costs that section's other figures alone.
Writes gpu.json (every figure, with its unit in its name) and gpu.md into --out.

    python tests/bench/gpu.py --out DIR          on a GPU
    python tests/bench/gpu.py --device sim --quick       no GPU: tries the script itself, on tiny sizes
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from tests.bench.gpu_report import report  # noqa: E402


@dataclass(frozen=True, slots=True)
class Section:
    """A process: which part it runs, and the share of the time that it may take."""

    module: str
    share: float
    parts: int = 1


SECTIONS = {
    "machine": Section("gpu_machine", 0.07),
    "operations": Section("gpu_operations", 0.17, parts=6),
    "demo": Section("gpu_demo", 0.12),
    "speed": Section("gpu_speed", 0.14),
    "model": Section("gpu_model", 0.40),
    "transformers": Section("gpu_transformers", 0.10),
}
"""In the order in which they run. What one leaves of its time is the others'."""

GRACE = 5.0
"""Seconds after a section's time before it is killed: it looks at the clock between measurements."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; 1 where one failed or found something wrong."""
    arguments = _parse(argv)
    begun = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"arguments": {"device": arguments.device, "quick": arguments.quick}, "sections": {}}
    with _importable() as site:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}
        found["native_build"] = _build(environment)
        for name in arguments.sections:
            left = arguments.minutes * 60 - (time.monotonic() - begun)
            shares = sum(SECTIONS[other].share for other in arguments.sections[arguments.sections.index(name) :])
            seconds = left * SECTIONS[name].share / shares
            found["sections"][name] = _run(name, seconds, arguments, environment)
            _write(found, arguments.out)
    found["seconds"] = time.monotonic() - begun
    _write(found, arguments.out)
    print((arguments.out / "gpu.md").read_text())
    return int(any(section["errors"] for section in found["sections"].values()))


def _run(name: str, seconds: float, arguments: argparse.Namespace, environment: dict[str, str]) -> dict[str, Any]:
    """Run one section, in parts side by side where it has some, and return what was found."""
    section = SECTIONS[name]
    parts = min(section.parts, max(1, (os.cpu_count() or 1) // 2))
    _say(f"{name}: {seconds:.0f} s")
    begun = time.monotonic()
    processes = []
    for part in range(parts):
        file = arguments.out / f".{name}.{part}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.bench.gpu_section", section.module, str(file)]
        command += ["--device", arguments.device, "--seconds", str(seconds), "--part", str(part), "--parts", str(parts)]
        command += ["--machine", str(arguments.out / "gpu.json")]
        command += ["--quick"] if arguments.quick else []
        log = file.with_suffix(".log").open("w+b")
        processes.append((subprocess.Popen(command, env=environment, stderr=log, stdout=log), file, log))
    merged: dict[str, Any] = {"errors": []}
    for process, file, log in processes:
        try:
            process.wait(max(1.0, begun + seconds + GRACE - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            merged["errors"].append("killed: its time was over")
        log.seek(0)
        said = log.read().decode(errors="replace")
        log.close()
        file.with_suffix(".log").unlink()
        sys.stderr.write(said)
        if process.returncode not in (0, -9):
            merged["errors"].append(f"ended with {process.returncode}: {said[-1500:]}")
        with contextlib.suppress(OSError, ValueError):  # it ended before it had written anything
            _merge(merged, json.loads(file.read_text()))
            file.unlink()
    merged["seconds"] = time.monotonic() - begun
    for error in merged["errors"]:
        _say(f"{name}: {error}")
    return merged


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Join lists and dictionaries; of anything else the later counts."""
    for key, value in more.items():
        old = into.get(key)
        if isinstance(old, list) and isinstance(value, list):
            old.extend(value)
        elif isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = value


@contextmanager
def _importable() -> Iterator[Path]:
    """Give a folder from which `import mixq` finds the checkout: quantize/ and models/ are parts of the package."""
    with tempfile.TemporaryDirectory(prefix="mixq-gpu-") as folder:
        package = Path(folder) / "mixq"
        package.mkdir()
        for source in (*(ROOT / "mixq").iterdir(), ROOT / "quantize", ROOT / "models"):
            if source.name != "__pycache__":
                (package / source.name).symlink_to(source)
        yield Path(folder)


def _build(environment: dict[str, str]) -> str:
    """Build the native library where there is none for this Python, and return what was said."""
    if (ROOT / "mixq" / "kernels" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}").exists():
        return "there was one"
    _say("building the native library")
    command = [sys.executable, "-m", "mixq.kernels.build_native"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr)[-2000:].strip()


def _write(found: dict[str, Any], out: Path) -> None:
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu.md").write_text(report(found))


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu.py",
        description="mixq on a GPU: correctness, speed of the kernels, and a full-size synthetic Mixtral 8x7B (25 "
        "GB of "
        "RAM) with 8 to 24 GB of GPU memory. Writes gpu.json and gpu.md.",
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", "build/gpu")), help="folder (default: $OUT or build/gpu)"
    )
    parser.add_argument("--device", choices=("cuda", "sim"), default="cuda", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script, measures nothing")
    parser.add_argument("--minutes", type=float, default=8.7, help="for all of it (default: %(default)s)")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, with commas (default: %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.out = arguments.out.resolve()
    arguments.sections = [name.strip() for name in arguments.sections.split(",")]
    for name in arguments.sections:
        if name not in SECTIONS:
            parser.error(f"unknown section {name!r}; there are {', '.join(SECTIONS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
