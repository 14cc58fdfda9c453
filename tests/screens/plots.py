"""The sheet of pictures in the README: a recording of the demo model, its quantized folder, its bench.

`python -m tests.screens.plots` runs the commands that a user would, and writes tests/screens/plots.png.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TARGET = Path(__file__).with_name("plots.png")
SIZES = ("15MB", "17MB", "19MB", "21MB", "24MB", "28MB")


def mixq(folder: Path, *arguments: str) -> str:
    """Run a command in a folder, and return what it printed."""
    command = [sys.executable, "-m", "mixq", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mixq(folder, "trace", "-o", "demo.mqt", "--max-tokens", "120", "--seed", "1")
        mixq(folder, "quantize", str(Path(__file__).parents[2] / "models" / "demo"), "demo-nl4")
        mixq(folder, "bench", "-p", "16,128,512", "-n", "64", "--save", "bench.jsonl")
        for vram in SIZES:
            mixq(folder, "bench", "-p", "0", "-n", "64", "--device", "sim", "--vram", vram, "--save", "bench.jsonl")
        mixq(folder, "plot", "demo.mqt", "bench.jsonl", "demo-nl4", "-o", str(TARGET))
    print(f"{TARGET}: {TARGET.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
