"""llama.cpp's log probabilities for given tokens, and its quantized files.

Contract: a script for an interpreter that has llama-cpp-python and numpy, and perhaps nothing else; it knows no mixq.

    python tests/bench/llama_cpp_logits.py quantize FROM.gguf TO.gguf FILE-TYPE
    python tests/bench/llama_cpp_logits.py logprobs MODEL.gguf TOKENS.json OUT.npy

TOKENS.json is a list of [token ids, first]: OUT has a row of float32 for each token from the first on, sequences one
after another. The KV cache is float32, so that only the weights and llama.cpp's products count. File types:
`llama_ftype` in llama.h; the tensors all get that type (`pure`), but for the embedding, which stays bfloat16.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

CONTEXT = 1024
THREADS = 1  # two wait for each other at every product of a model as small as the demo's
BF16 = 30  # ggml_type in ggml.h, which llama-cpp-python does not name


def quantize(source: str, target: str, file_type: int) -> None:
    """Make a quantized file with llama.cpp's own quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = file_type
    params.nthread = THREADS
    params.pure = True
    params.token_embedding_type = BF16
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        sys.exit("llama.cpp did not quantize the file")


def logprobs(path: str, sequences: list[tuple[list[int], int]]) -> Iterator[NDArray[np.float32]]:
    """Yield log probabilities [tokens from the first on, vocabulary] of each sequence."""
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit("llama.cpp did not load the file")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = THREADS
    params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp made no context")
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
    for ids, first in sequences:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for i, id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = id, i, i >= first
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        if llama_cpp.llama_decode(context, batch):
            sys.exit("llama_decode failed")
        rows = [llama_cpp.llama_get_logits_ith(context, i) for i in range(first, len(ids))]
        logits = np.stack([np.ctypeslib.as_array(row, (vocab,)) for row in rows]).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        yield (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def main() -> None:
    """Do what the command line says."""
    llama_cpp.llama_backend_init()
    command, *arguments = sys.argv[1:]
    if command == "quantize":
        quantize(arguments[0], arguments[1], int(arguments[2]))
    else:
        sequences = json.loads(Path(arguments[1]).read_text())
        np.save(arguments[2], np.concatenate(list(logprobs(arguments[0], sequences))))


if __name__ == "__main__":
    main()
