"""llama.cpp's side: a random GGUF file of Mixtral's layers, run through the plain C interface as llama-bench does.

Contract: run as a worker (see `worker`) in an interpreter that has llama-cpp-python and gguf.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import time
from pathlib import Path

from tests.bench.worker import Description, answers_on_stdout, serve

CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True, help="the GGUF file; made if it is not there")
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--mapped", action="store_true", help="map the file, as llama.cpp does by default")
    arguments = parser.parse_args()
    try:
        import gguf  # noqa: F401
        import llama_cpp
    except ModuleNotFoundError as error:
        sys.exit(f"no module named {error.name}")
    from tests.bench import gguf_random

    shape = gguf_random.mixtral(arguments.layers)
    if not arguments.file.exists():
        gguf_random.write(arguments.file, shape, arguments.recipe)
    with answers_on_stdout():
        begun = time.perf_counter()
        side = LlamaCpp(
            arguments.file, shape.vocab, arguments.threads, repack=not arguments.no_repack, mapped=arguments.mapped
        )
        side.decode(1)
        first_token = time.perf_counter() - begun
        build = f"llama-cpp-python {llama_cpp.__version__}, {_features(llama_cpp.llama_print_system_info().decode())}"
        size = gguf_random.bytes_per_token(shape, arguments.recipe)
        serve(Description(build, size, first_token=first_token), side.decode, side.prefill)


class LlamaCpp:
    """A model and a context.

    Args:
        repack: as by default, let llama.cpp rearrange the weights for its kernels when it loads them.
        mapped: as by default, map what is not rearranged; else it is read into memory, which can have huge pages.
    """

    def __init__(self, path: Path, vocab: int, threads: int, *, repack: bool, mapped: bool) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = repack
        if not mapped:
            model_params.load_mode = llama_cpp.LLAMA_LOAD_MODE_NONE
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        if not self.model:
            sys.exit("llama.cpp did not load the file")
        context_params = llama_cpp.llama_context_default_params()
        context_params.n_ctx = CONTEXT
        context_params.n_threads = context_params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, context_params)
        if not self.context:
            sys.exit("llama.cpp made no context")
        rng = random.Random(0)
        self.ids = [rng.randrange(vocab) for _ in range(CONTEXT)]

    def decode(self, tokens: int) -> None:
        """Run tokens one by one, with logits."""
        self._clear()
        for i in range(tokens):
            self._run(self.ids[i : i + 1])

    def prefill(self, tokens: int) -> None:
        """Run a prompt, with the logits of its last token."""
        self._clear()
        self._run(self.ids[:tokens])

    def _clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), False)

    def _run(self, ids: list[int]) -> None:
        tokens = (ctypes.c_int32 * len(ids))(*ids)  # the batch points to it
        status = self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids)))
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        self.api.llama_synchronize(self.context)


def _features(system_info: str) -> str:
    """Return what llama.cpp's system info says is on: `CPU : SSE3 = 1 | AVX2 = 1 | ...` -> `SSE3 AVX2 ...`."""
    pairs = [part.rpartition(":")[2].split("=") for part in system_info.split("|") if "=" in part]
    return " ".join(name.strip() for name, value in pairs if value.strip() == "1")


if __name__ == "__main__":
    main()
