"""Progress of a long command: a bar with the remaining time in a terminal, plain lines elsewhere.

Contract: everything goes to standard error. Without a terminal a line is written at most every `QUIET_SECONDS`, and
after the last step, so that a log stays short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from mixq.cli import output
from mixq.config import format_size

QUIET_SECONDS = 10.0

Update = Callable[[int, int], None]
"""Called with the amounts done and in total."""


@contextmanager
def _progress(amount: Callable[[int, int], str], label: str) -> Iterator[Update]:
    console = output.talk()
    if not console.is_terminal:
        yield _plain_lines(label, amount)
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", style="dim"),
        TimeElapsedColumn(),
        TextColumn("left", style="dim"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, expand=True, transient=True) as bar:
        task = bar.add_task(label, total=None, amount="")

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, amount=amount(done, total))

        yield update


def _plain_lines(label: str, amount: Callable[[int, int], str]) -> Update:
    begun = time.monotonic()
    written = begun

    def update(done: int, total: int) -> None:
        nonlocal written
        now = time.monotonic()
        if done < total and now - written < QUIET_SECONDS:
            return
        written = now
        left = (now - begun) * (total - done) / done if done else 0.0
        share = 100 * done // total if total else 100
        output.talk().print(f"{label}: {share} %, {amount(done, total)}, {left:.0f} s left")

    return update


def _short(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:,}"


token_progress = partial(_progress, lambda done, total: f"{done:,} of {total:,} tokens")
weight_progress = partial(_progress, lambda done, total: f"{_short(done)} of {_short(total)} weights")
byte_progress = partial(_progress, lambda done, total: f"{format_size(done)} of {format_size(total)}")
run_progress = partial(_progress, lambda done, total: f"{done} of {total} runs")
