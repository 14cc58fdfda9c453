"""mixq's side with a model folder, its files in the page cache in a given state. Run as a worker (see `worker`)."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import mixq
from mixq.engine import loading
from mixq.engine.model import Model
from mixq.formats.folder import ModelFolder
from mixq.measure.speed.write_folder import FolderJob
from mixq.plan.sizes import ModelSizes
from tests.bench.mixq_side import CONTEXT, Mixq
from tests.bench.worker import Description, answers_on_stdout, serve

CACHED = ("huge", "4k", "written")
"""States of the page cache: in huge pages as far as the file system has them, in pages of 4 KiB, as writing left it."""

_PIECE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mix", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="the model folder, written if it is not there")
    parser.add_argument("--cached", choices=CACHED, required=True)
    parser.add_argument("--mapped", action="store_true", help="leave the files mapped as the page cache has them")
    arguments = parser.parse_args()
    with answers_on_stdout():
        if not arguments.folder.exists():
            FolderJob(arguments.folder, "mixtral-8x7b", layers=arguments.layers, mix=arguments.mix).run()
        bring_into_cache(arguments.folder, arguments.cached)
        if arguments.mapped:
            loading.SMALL = 1 << 60
        begun = time.perf_counter()
        model = mixq.load(arguments.folder, device="cpu", context=CONTEXT, threads=arguments.threads)
        side = Mixq(model)
        side.decode(1)
        first_token = time.perf_counter() - begun
        serve(
            Description(ways(model), ModelSizes.of_weights(model.folder).token, first_token=first_token),
            side.decode,
            side.prefill,
        )


def ways(model: Model) -> str:
    """Return how the weights are in memory."""
    return model.placement.weights_are


def bring_into_cache(folder: Path, state: str) -> None:
    """Read a folder's files into the page cache, in pages of a size."""
    for path in folder.glob("*.safetensors"):
        handle = os.open(path, os.O_RDONLY)
        if state == "4k":
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead, so no large pages
        buffer = bytearray(_PIECE)
        while state != "huge" and os.readv(handle, [buffer]):
            pass
        os.close(handle)
    if state == "huge":
        for shard in ModelFolder.open(folder).mapped:
            shard.advise_away(0, shard.header.file_size)
            shard.ask_for_huge_pages()
            shard.read_in(0, shard.header.file_size)


if __name__ == "__main__":
    main()
