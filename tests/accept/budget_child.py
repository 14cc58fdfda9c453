"""Runs a model as full as it gets, and prints as JSON what that took: a process of its own for `test_budgets`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
STEPS = 12


def resident() -> int:
    """Return the bytes that this process holds now, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def main(folder: str, options: dict[str, object]) -> None:
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.is_set():
            peak = max(peak, resident())
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    import mixq
    from mixq.errors import DoesNotFitError
    from mixq.model.attention import Chunk

    try:
        model = mixq.load(folder, **options)
    except DoesNotFitError as error:
        print(json.dumps({"refused": error.message}))
        return
    ids = torch.randint(model.config.vocab_size, (model.context,), generator=torch.Generator().manual_seed(0))
    for _ in range(model.options.sequences):
        cache = model.new_kv_cache()
        for part in torch.split(ids[: model.context - STEPS], 512):
            model.network.forward([Chunk(part, cache)])
        for step in range(STEPS):
            model.network.forward([Chunk(ids[step : step + 1], cache)])
        model.kept = [*getattr(model, "kept", []), cache]  # all of them at once, as in a server
    stats = model.placement.as_dict()
    over.set()
    peak = max(peak, resident())
    print(
        json.dumps(
            {
                "peak": peak,
                "vram_peak": stats.get("vram_peak_bytes", 0),
                "planned": model.placement.planned(),
                "notes": list(model.notes),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
