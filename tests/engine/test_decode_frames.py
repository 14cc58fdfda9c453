"""Decode reads from top to bottom: few Python frames lie between `Model.generate` and the native kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType, GeneratorType
from typing import Any

import pytest

import mixq
from mixq.kernels import native_library
from mixq.kernels.reference import DECODE_ROWS

MOST = {"mixq_step": 6, "mixq_experts": 7}
"""By function: `Model.generate` (or the iterator's caller), answer, step, network, its single call, kernels; for a
prompt, layer and experts instead of the single call."""


def frames_up_to(outermost: CodeType) -> Iterator[str]:
    """Yield the names of the caller's callers, up to the one that runs some code."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_qualname
        if frame.f_code is outermost:
            return
        frame = frame.f_back
    pytest.fail("the native call does not come from the answer")


@pytest.mark.skipif(native_library.library() is None, reason="there is no native library")
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", MOST)
def test_few_frames_from_the_answer_to_the_native_call(
    monkeypatch: pytest.MonkeyPatch, stream: bool, name: str
) -> None:
    library = native_library.library()
    assert library is not None
    run = getattr(library, name)
    found: list[list[str]] = []
    outermost = mixq.Model.generate.__code__

    def counted(*arguments: Any) -> Any:
        found.append(list(frames_up_to(outermost)))
        return run(*arguments)

    model = mixq.load(device="cpu", threads=1)
    prompt = [1, 5, 6] * DECODE_ROWS
    monkeypatch.setattr(library, name, counted)
    if stream:
        events = model.generate(prompt, temperature=0, max_tokens=3, ignore_eos=True)
        assert isinstance(events, GeneratorType)
        outermost = events.gi_code
        assert len(list(events)) == 5
    else:
        done = model.generate(prompt, temperature=0, max_tokens=3, ignore_eos=True, stream=False)
        assert isinstance(done, mixq.Done)
    assert len(found) == (
        2 if name == "mixq_step" else model.config.num_hidden_layers
    )  # tokens, or layers of the prompt
    assert all(len(frames) <= MOST[name] - stream for frames in found), "\n".join(found[-1])
