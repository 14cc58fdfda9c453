"""How far a long command has come: a bar with the time left on a terminal, plain lines elsewhere.

Contract: everything goes to standard error. Without a terminal a line is written at most every `QUIET_SECONDS`, and
the last step always, so that a log stays short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mixq.cli import output
from mixq.config import format_size

QUIET_SECONDS = 10.0

Update = Callable[[int, int], None]
"""Called with how much is done, and how much there is in all."""


@contextmanager
def token_progress(label: str) -> Iterator[Update]:
    """Show progress counted in tokens."""
    with _progress(label, lambda done, total: f"{done:,} of {total:,} tokens") as update:
        yield update


@contextmanager
def weight_progress(label: str) -> Iterator[Update]:
    """Show progress counted in weights of the model."""
    with _progress(label, lambda done, total: f"{_short(done)} of {_short(total)} weights") as update:
        yield update


@contextmanager
def byte_progress(label: str) -> Iterator[Update]:
    """Show progress counted in bytes."""
    with _progress(label, lambda done, total: f"{format_size(done)} of {format_size(total)}") as update:
        yield update


@contextmanager
def run_progress(label: str) -> Iterator[Update]:
    """Show progress counted in runs of a measurement."""
    with _progress(label, lambda done, total: f"{done} of {total} runs") as update:
        yield update


def _short(count: int) -> str:
    for limit, unit in ((10**9, "B"), (10**6, "M")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count:,}"


@contextmanager
def _progress(label: str, amount: Callable[[int, int], str]) -> Iterator[Update]:
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
