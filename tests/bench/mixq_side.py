"""mixq's side: Mixtral's layers with random weights, in memory or in a model folder. Run as a worker (see `worker`)."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
import time
from pathlib import Path

import torch

import mixq
from mixq.config import PREFILL_CHUNK, RuntimeOptions
from mixq.engine.model import Model
from mixq.kernels import native_library
from mixq.measure.speed.record import commit
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.measure.speed.write_folder import FolderJob
from mixq.model.attention import Chunk
from mixq.plan.sizes import ModelSizes
from tests.bench.worker import Description, answers_on_stdout, serve

CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mix", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--folder", type=Path, help="load this model folder, written if it is not there")
    arguments = parser.parse_args()
    reason = native_library.unavailable_reason()
    if reason is not None:
        sys.exit(f"mixq's native kernels are missing: {reason}")
    with answers_on_stdout():
        if arguments.folder is None:
            weights = SyntheticWeights.make("mixtral-8x7b", layers=arguments.layers, mix=arguments.mix)
        elif not arguments.folder.exists():
            FolderJob(arguments.folder, "mixtral-8x7b", layers=arguments.layers, mix=arguments.mix).run()
        options = {"context": CONTEXT, "threads": arguments.threads}
        begun = time.perf_counter()
        if arguments.folder is None:
            model = Model(weights, RuntimeOptions.from_kwargs(**options))
        else:
            model = mixq.load(arguments.folder, device="cpu", **options)
        side = Mixq(model)
        side.decode(1)
        first_token = time.perf_counter() - begun
        build = f"mixq {commit() or importlib.metadata.version('mixq')}, {model.kernels.name} kernels"
        size = ModelSizes.of_weights(model.folder).token
        serve(Description(build, size, first_token=first_token), side.decode, side.prefill)


class Mixq:
    """A model and one KV cache, which every measurement begins anew."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kv_cache = model.new_kv_cache()
        self.ids = torch.randint(model.config.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(0))

    def decode(self, tokens: int) -> None:
        """Run tokens one by one, with logits."""
        self._run(tokens, 1)

    def prefill(self, tokens: int) -> None:
        """Run a prompt, with the logits of its last token."""
        self._run(tokens, PREFILL_CHUNK)

    def _run(self, tokens: int, at_once: int) -> None:
        self.kv_cache.truncate(0)
        for ids in torch.split(self.ids[:tokens], at_once):
            self.model.network.forward([Chunk(ids, self.kv_cache)])


if __name__ == "__main__":
    main()
