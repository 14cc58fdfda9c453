"""`mixq trace`: run prompts and record which experts run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mixq.cli import options, output
from mixq.cli.flag_groups import takes_groups
from mixq.cli.input import utf8
from mixq.cli.interrupt import first_interrupt_cancels, interrupts_wait
from mixq.cli.progress import token_progress
from mixq.cli.tables import fact_grid
from mixq.config import format_size
from mixq.errors import PromptError, StorageError, UsageError, printable

if TYPE_CHECKING:
    from mixq.measure.prompt_file import NamedPrompt
    from mixq.measure.recorder import Recorder
    from mixq.plan.recording import Recording

MAX_TOKENS = 64
LARGEST_FILE = 64 << 20


@takes_groups(without=("stop",))
def trace(
    path: Annotated[Path, options.option("--output", "The recording to write, such as run.mqt.", "FILE", short="-o")],
    model: options.ModelArgument = None,
    *,
    prompts: Annotated[
        Path | None,
        options.option(
            "--prompts",
            'One prompt per line, or JSON lines with "prompt" or "messages", and "name"; - reads standard input.  '
            "[default: a few in several languages and code]",
            "FILE",
        ),
    ] = None,
    max_tokens: Annotated[int, options.flag("--max-tokens", "End each reply after N tokens.", "N")] = MAX_TOKENS,
    sampling: options.Sampling,
    json: options.Json = False,
    runtime: options.Runtime,
) -> None:
    """Run prompts and record the routers' choices: experts, router weights, predictions for the next layers, times.

    mixq replay, mixq plot and numpy (np.load) read the file. Ctrl-C ends the run and keeps what was recorded.
    Example: mixq trace --prompts prompts.txt -o run.mqt
    """
    if max_tokens < 1:
        raise UsageError(
            f"--max-tokens is {max_tokens}; it must be 1 or more.", hint="Omit it, or use a value such as 64."
        )
    _check_place(path)
    wanted = _read(prompts)
    from mixq.cli.loading import load_model
    from mixq.engine.sampling import default_sampling
    from mixq.measure.recorder import Recorder

    loaded = load_model(model, runtime)
    recorder = Recorder(loaded, "the demo model" if model is None else None)
    chosen = sampling.over(default_sampling(loaded.folder.generation_config))
    begun = time.perf_counter()
    try:
        whole = _record(recorder, wanted, chosen)
    except KeyboardInterrupt:  # the second one
        whole = False
    with interrupts_wait():
        recording = recorder.recording()
        if recording is not None:
            recording.write(path)
            _report(recording, path, time.perf_counter() - begun, whole=whole, json=json)
    if not whole:
        raise KeyboardInterrupt


def _check_place(path: Path) -> None:
    """Refuse a file that cannot be written, before anything runs."""
    if path.is_dir():
        raise UsageError(f"{printable(path)} is a folder.", hint="Name a file, such as run.mqt.")
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise StorageError(f"{printable(folder)} is not a folder that you can write to.")


def _read(path: Path | None) -> list[NamedPrompt]:
    from mixq.formats.json_file import regular_file_size
    from mixq.measure.prompt_file import built_in, parse_prompts

    if path is None:
        return built_in()
    if str(path) == "-":
        return parse_prompts(utf8(sys.stdin.buffer.read(LARGEST_FILE), "standard input"), "standard input")
    if regular_file_size(path) > LARGEST_FILE:
        raise PromptError(f"{printable(path)} is larger than {format_size(LARGEST_FILE)}.")
    return parse_prompts(utf8(path.read_bytes(), str(path)), str(path))


def _record(recorder: Recorder, prompts: list[NamedPrompt], sampling: dict[str, Any]) -> bool:
    """Run every prompt; return False where Ctrl-C ended it.

    Raises:
        KeyboardInterrupt: a second Ctrl-C, in the middle of a step.
    """
    tasks = recorder.tasks(prompts, **sampling)
    passed = 0
    room = [
        len(task.prompt_ids) + min(sampling["max_tokens"], recorder.model.context - len(task.prompt_ids))
        for task in tasks
    ]
    total = sum(room)
    with first_interrupt_cancels() as cancel, token_progress("recording") as update:
        for number, (prompt, task) in enumerate(zip(prompts, tasks, strict=True)):
            passed = sum(room[:number])  # a reply may have ended early

            def count(tokens: int) -> None:
                nonlocal passed
                passed += tokens
                update(min(passed, total), total)

            done = recorder.run(prompt.name, task, cancel=cancel, on_token=count)
            for line in recorder.model.notices():
                output.warn(line)
            if done.reason == "cancelled":
                return False
        update(total, total)
    return True


def _report(recording: Recording, path: Path, seconds: float, *, whole: bool, json: bool) -> None:
    replies = ~recording.is_prompt
    decoded = float(recording.seconds[replies].sum())
    recall = _recall(recording)
    speed = int(replies.sum()) / decoded if decoded > 0 else 0.0
    if json:
        facts = recording.facts
        output.print_json(
            {
                "recording": str(path),
                "bytes": path.stat().st_size,
                "model": facts.model,
                "device": facts.device,
                "layers": facts.layers,
                "experts": facts.experts,
                "active": facts.active,
                "prompts": [
                    {"name": p.name, "prompt_tokens": p.prompt_tokens, "tokens": p.tokens} for p in facts.prompts
                ],
                "tokens": len(recording),
                "reply_tokens": int(replies.sum()),
                "decode_tokens_per_second": speed,
                "recall": {str(ahead): value for ahead, value in recall.items()},
                "seconds": seconds,
                "interrupted": not whole,
            }
        )
        return

    prompts = len(recording.facts.prompts)
    facts_shown = [
        ("prompts", f"{prompts}, {int(recording.is_prompt.sum()):,} tokens" + ("" if whole else ", interrupted")),
        ("replies", f"{int(replies.sum()):,} tokens, {speed:.1f}/s"),
        ("predicted", " · ".join(f"{value:.0%} {ahead} ahead" for ahead, value in recall.items()) or "nothing"),
        ("file", f"{printable(path)}, {format_size(path.stat().st_size)}"),
    ]
    output.console().print(fact_grid(facts_shown))


def _recall(recording: Recording) -> dict[int, float]:
    """Return the share of the experts used that were predicted, by how many layers ahead."""
    from mixq.plan.recording import NOTHING

    found = {}
    for ahead in range(recording.facts.lookahead):
        named = recording.predicted[:, ahead]  # [T, L, A]
        asked = (named != NOTHING).all(axis=-1)  # [T, L]
        if asked.any():
            hits = (recording.experts[..., :, None] == named[..., None, :]).any(axis=-1)  # [T, L, A]
            found[ahead + 1] = float(hits[asked].mean())
    return found
