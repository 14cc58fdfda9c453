"""mixq's side: a synthetic model of Mixtral's layers in memory. Run as a worker (see `worker`)."""

from __future__ import annotations

import argparse
import sys

import torch

from mixq.config import PREFILL_CHUNK, RuntimeOptions
from mixq.engine.model import Model
from mixq.kernels import native_library
from mixq.measure.speed.synthetic import SyntheticWeights
from mixq.model.attention import Chunk
from tests.bench.worker import Description, answers_on_stdout, serve

CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mix", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    reason = native_library.unavailable_reason()
    if reason is not None:
        sys.exit(f"mixq's native kernels are missing: {reason}")
    with answers_on_stdout():
        weights = SyntheticWeights.make("mixtral-8x7b", layers=arguments.layers, mix=arguments.mix)
        side = Mixq(weights, arguments.threads)
        build = f"mixq, {side.model.kernels.name} kernels, {native_library.isa_name(native_library.isa())}"
        serve(Description(build, bytes_per_token(weights)), side.decode, side.prefill)


def bytes_per_token(weights: SyntheticWeights) -> int:
    """Return the bytes of the weights that one token reads: all but the embedding and the experts not chosen."""
    config = weights.config
    total = 0
    for name, tensor in weights.stored.items():
        if ".experts." in name:
            total += tensor.nbytes * config.num_experts_per_tok // config.num_local_experts
        elif not name.startswith("model.embed_tokens."):
            total += tensor.nbytes
    return total


class Mixq:
    """A model and one KV cache, which every measurement begins anew."""

    def __init__(self, weights: SyntheticWeights, threads: int) -> None:
        self.model = Model(weights, RuntimeOptions.from_kwargs(context=CONTEXT, threads=threads))
        self.kv_cache = self.model.new_kv_cache()
        self.ids = torch.randint(weights.config.vocab_size, (CONTEXT,), generator=torch.Generator().manual_seed(0))

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
