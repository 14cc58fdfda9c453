"""Recordings of synthetic routing."""

from __future__ import annotations

import numpy as np

from mixq.experts.routing import Trace
from mixq.plan.recording import Facts, PromptFacts, Recording


def recording_of(trace: Trace, model: str = "") -> Recording:
    """Return a trace as a recording: one prompt's reply, with even weights, no predictions and no times."""
    T, L, A = len(trace.tokens), trace.layers, trace.active
    return Recording(
        Facts(model, L, trace.experts, A, prompts=(PromptFacts("trace", 0, T),)),
        np.array(trace.tokens, dtype=np.uint8).reshape(T, L, A),
        np.full((T, L, A), 1 / A, dtype=np.float16),
        np.empty((T, 0, L, A), dtype=np.uint8),
        np.zeros(T, dtype=np.int32),
        np.zeros(T, dtype=np.int32),
        np.zeros(T, dtype=np.bool_),
        np.zeros(T, dtype=np.float32),
    )
