"""Draws tests/screens/terminal.svg: a chat with the demo model in a real terminal, for the README.

.venv/bin/python tests/screens/terminal.py
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from rich.console import Console
from rich.text import Text

from tests.chat.tmux import mixq

OUT = Path(__file__).with_suffix(".svg")
COLUMNS, ROWS = 84, 34
SAID = (
    "What is 25 - (4 * 2) + 3?",
    "Write a Python function that computes the factorial of a number.",
    "/experts",
)


def screen() -> str:
    """Return the last screen of the conversation, with its colours."""
    with tempfile.TemporaryDirectory() as home:
        # The first chat quantizes the demo model; the second says only what there is to say each time.
        for first in (True, False):
            window = mixq(
                "chat", "--temperature", "0", columns=COLUMNS, rows=ROWS,
                environment={"MIXQ_HOME": home, "COLORTERM": "truecolor"},
            )  # fmt: skip
            try:
                window.wait_for("^> ?$")
                if first:
                    window.press("C-d")
                    window.exit_code()
                    continue
                for count, line in enumerate(SAID, 1):
                    window.say(line)
                    window.wait_for("tokens in" if line[0] != "/" else "busiest", count if line[0] != "/" else 1)
                    window.wait_for("^> ?$")
                return window.coloured()
            finally:
                window.close()
    raise AssertionError("the second chat returns")


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for line in screen().split("\n"):
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    OUT.write_text(console.export_svg(title="mixq chat", unique_id="mixq"))
    print(f"{OUT}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
