"""Decode reads from top to bottom: few Python frames lie between the iterator of an answer and the native kernels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType, GeneratorType
from typing import Any

import pytest

import mixq
from mixq.kernels import native_library

MOST = 7
"""Answer, step, network, layer, experts, kernels; and one more."""


def frames_up_to(outermost: FrameType | None) -> Iterator[str]:
    """Yield the names of the caller's callers, up to a frame of theirs."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_qualname
        if frame is outermost:
            return
        frame = frame.f_back
    pytest.fail("the native call does not come from the answer")


@pytest.mark.skipif(native_library.library() is None, reason="there is no native library")
def test_few_frames_from_the_answer_to_the_native_call(monkeypatch: pytest.MonkeyPatch) -> None:
    library = native_library.library()
    assert library is not None
    run_experts = library.mixq_experts
    found: list[list[str]] = []

    def counted(*arguments: Any) -> Any:
        assert isinstance(events, GeneratorType)
        found.append(list(frames_up_to(events.gi_frame)))
        return run_experts(*arguments)

    model = mixq.load(device="cpu", threads=1)
    monkeypatch.setattr(library, "mixq_experts", counted)
    events = model.generate([1, 5, 6], temperature=0, max_tokens=3, ignore_eos=True)
    assert len(list(events)) == 5
    assert len(found) == 3 * model.config.num_hidden_layers
    assert all(len(frames) <= MOST for frames in found), "\n".join(found[-1])
