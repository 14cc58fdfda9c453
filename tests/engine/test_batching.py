"""Several answers at once: the same texts as alone, fair, cancelled at any time, nothing left behind."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mixq
from mixq.config import PREFILL_CHUNK
from mixq.engine.answer import Request
from mixq.engine.batching import Batcher
from mixq.engine.events import Done, Event, Failed, PromptProgress, Token
from mixq.engine.sampling import SamplingParams
from mixq.errors import MixqError, ModelFileError, PromptTooLong, QueueFull, UsageError
from mixq.text.grammar import GrammarSpec
from tests.checkpoints import write_tiny_mixtral

SEED = 20
SECONDS = 60  # until a test gives up waiting


class Listener:
    """Takes the events of some requests."""

    def __init__(self, count: int = 1, notify: Callable[[int, Event | Failed], None] | None = None) -> None:
        self.events: list[list[Event | Failed]] = [[] for _ in range(count)]
        self._left = count
        self._over = threading.Event()
        self._notify = notify

    def __call__(self, index: int, event: Event | Failed) -> None:
        self.events[index].append(event)
        if self._notify is not None:
            self._notify(index, event)
        if isinstance(event, Done | Failed):
            self._left -= 1
            if not self._left:
                self._over.set()

    def wait(self) -> list[Done]:
        assert self._over.wait(SECONDS)
        last = [events[-1] for events in self.events]
        assert all(isinstance(event, Done) for event in last), last
        return [event for event in last if isinstance(event, Done)]

    def wait_for_failure(self) -> list[str]:
        assert self._over.wait(SECONDS)
        return [event.error.message for (*_, event) in self.events if isinstance(event, Failed)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def greedy(ids: list[int], tokens: int = 12, **options: Any) -> Request:
    return Request(ids, SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True), **options)


def prompts(count: int, length: int = 11) -> list[list[int]]:
    generator = torch.Generator().manual_seed(SEED)
    print(f"seed {SEED}")
    return [torch.randint(3, 64, (length + i,), generator=generator).tolist() for i in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_mixtral(path, tokenizer=False, max_position_embeddings=4096)
    return path


def load(folder: Path, **options: Any) -> mixq.Model:
    return mixq.load(folder, context=2048, sequences=4, **options)


@pytest.fixture(params=["cpu", "sim"])
def batcher(folder: Path, request: pytest.FixtureRequest) -> Iterator[Batcher]:
    options = {"device": "sim", "vram": "13MB"} if request.param == "sim" else {}
    batcher = Batcher(load(folder, **options), queue=16)
    yield batcher
    assert batcher.close(timeout=SECONDS)
    batcher.model.close()


def alone(batcher: Batcher, request: Request) -> Done:
    listener = Listener()
    batcher.submit([request], listener)
    return listener.wait()[0]


def test_a_batch_says_what_each_says_alone(batcher: Batcher) -> None:
    requests = [
        Request(
            ids,
            SamplingParams(temperature=t, seed=5, max_tokens=20 + i, ignore_eos=True),
            reuse=False,
        )
        for i, ids in enumerate(prompts(10))
        for t in (0.0, 1.0)
    ]
    expected = [alone(batcher, request).token_ids for request in requests[:16]]
    listener = Listener(16)
    batcher.submit(requests[:16], listener)
    assert [done.token_ids for done in listener.wait()] == expected
    assert len({len(tokens) for tokens in expected}) > 4


def test_logits_in_a_batch_have_the_bits_of_one(batcher: Batcher) -> None:
    params = SamplingParams(temperature=0, max_tokens=9, logprobs=5, ignore_eos=True)
    requests = [Request(ids, params, reuse=False) for ids in prompts(4)]
    expected = [[t.top_logprobs for t in alone(batcher, request).tokens] for request in requests]
    listener = Listener(4)
    batcher.submit(requests, listener)
    assert [[t.top_logprobs for t in done.tokens] for done in listener.wait()] == expected


def test_answers_really_share_passes(folder: Path) -> None:
    model = load(folder)
    sizes: list[int] = []
    forward = model.network.forward
    model.network.forward = lambda chunks, **kw: (sizes.append(len(chunks)), forward(chunks, **kw))[1]  # type: ignore
    batcher = Batcher(model)
    listener = Listener(4)
    batcher.submit([greedy(ids, 40) for ids in prompts(4)], listener)
    listener.wait()
    assert max(sizes) == 4
    assert sum(sizes) == 4 + 4 * 39
    batcher.close()


def test_a_long_prompt_lets_the_others_go_on(batcher: Batcher) -> None:
    """Chunks of a prompt and tokens of the others take turns."""
    order: list[str] = []
    first, second = Listener(notify=lambda i, e: order.append("a")), Listener(notify=lambda i, e: order.append("b"))
    batcher.submit([greedy(prompts(1)[0], 30)], first)
    wait_until(lambda: len(order) > 2)
    batcher.submit([greedy(prompts(1, 3 * PREFILL_CHUNK + 5)[0], 1)], second)
    second.wait()
    first.wait()
    chunks = [i for i, name in enumerate(order) if name == "b"][:4]
    assert all("a" in order[x:y] for x, y in itertools.pairwise(chunks) if y < len(order) - 3)


def test_two_prompts_take_turns(batcher: Batcher) -> None:
    long, short = prompts(1, 3 * PREFILL_CHUNK)[0], prompts(2, 30)[1]
    order: list[tuple[int, str]] = []
    listener = Listener(2, notify=lambda i, e: order.append((i, type(e).__name__)))
    batcher.submit([greedy(long, 1), greedy(short, 1)], listener)
    listener.wait()
    assert order.index((1, "Done")) < order.index((0, "Done"))


def test_first_come_first_served(folder: Path) -> None:
    batcher = Batcher(load(folder))
    begun: list[int] = []

    def note(index: int, event: Event | Failed) -> None:
        if isinstance(event, PromptProgress) and index not in begun:
            begun.append(index)

    listener = Listener(12, notify=note)
    batcher.submit([greedy(ids, 3) for ids in prompts(12)], listener)
    listener.wait()
    assert begun == list(range(12))
    batcher.close()


def test_a_conversation_goes_on_where_it_was(batcher: Batcher) -> None:
    ids = prompts(1, 40)[0]
    first = alone(batcher, greedy(ids, 5))
    assert first.stats.cached_tokens == 0
    longer = [*ids, *first.token_ids, 7, 8, 9]
    second = alone(batcher, greedy(longer, 5))
    assert second.stats.cached_tokens == 44  # the last token of an answer has not been run
    assert second.stats.prompt_tokens == 4
    assert batcher.state().cached_tokens == 44
    again = alone(batcher, greedy(longer, 5, reuse=False))
    assert again.stats.cached_tokens == 0
    assert again.token_ids == second.token_ids


def test_the_same_prompt_many_times_is_run_once(batcher: Batcher) -> None:
    ids = prompts(1, PREFILL_CHUNK + 60)[0]
    listener = Listener(4)
    batcher.submit([greedy(ids, 3)] * 4, listener)
    done = listener.wait()
    assert sorted(d.stats.cached_tokens for d in done) == [0, *[len(ids) - 1] * 3]
    assert len({d.token_ids for d in done}) == 1


def test_a_common_beginning_is_copied_not_stolen(batcher: Batcher) -> None:
    """Two conversations with one long system prompt: both stay whole."""
    system = prompts(1, 30)[0]
    one, two = [*system, *range(4, 60)], [*system, *range(60, 4, -1)]
    alone(batcher, greedy(one, 2))
    assert alone(batcher, greedy(two, 2)).stats.cached_tokens == len(system)
    assert alone(batcher, greedy([*one, 9], 2)).stats.cached_tokens >= len(one)
    assert alone(batcher, greedy([*two, 9], 2)).stats.cached_tokens >= len(two)


def test_the_conversation_used_least_recently_goes_first(batcher: Batcher) -> None:
    several = prompts(5, 50)
    for ids in several[:4]:
        alone(batcher, greedy(ids, 1))
    alone(batcher, greedy([*several[0], 5], 1))
    alone(batcher, greedy(several[4], 1))  # takes the place of the second
    cached = [alone(batcher, greedy([*ids, 6], 1)).stats.cached_tokens for ids in (several[0], several[2], several[1])]
    assert cached[0] >= 50
    assert cached[1] >= 50
    assert cached[2] == 0
    assert batcher.state().kept == 4


def test_sharing_can_be_switched_off(folder: Path) -> None:
    batcher = Batcher(load(folder), reuse=False)
    ids = prompts(1, 40)[0]
    assert [alone(batcher, greedy(ids, 1)).stats.cached_tokens for _ in range(2)] == [0, 0]
    batcher.close()


def test_the_queue_is_bounded(batcher: Batcher) -> None:
    listener = Listener(4)
    ticket = batcher.submit([greedy(ids, 1500) for ids in prompts(4)], listener)
    wait_until(lambda: batcher.state().running == 4)
    waiting = Listener(16)
    behind = batcher.submit([greedy(ids, 1) for ids in prompts(16)], waiting)
    with pytest.raises(QueueFull, match="16 requests are waiting") as caught:
        batcher.submit([greedy([5, 6])], Listener())
    assert 1 <= caught.value.retry_after <= 60
    behind.cancel(3)
    batcher.submit([greedy([5, 6], 1)], room := Listener())
    ticket.cancel()
    assert [done.reason for done in listener.wait()] == ["cancelled"] * 4
    assert [done.reason for done in waiting.wait()].count("cancelled") == 1
    assert room.wait()[0].reason == "length"


def test_all_or_none_of_several_are_queued(batcher: Batcher) -> None:
    with pytest.raises(QueueFull):
        batcher.submit([greedy([5, 6], 1)] * 21, Listener())
    assert batcher.state().queued == 0


@pytest.mark.parametrize("when", ["queue", "prefill", "decode"])
def test_cancelling_frees_the_work_and_leaves_the_others_alone(when: str, batcher: Batcher) -> None:
    others = [greedy(ids, 60) for ids in prompts(3)]
    expected = [alone(batcher, Request(r.prompt_ids, r.params, reuse=False)).token_ids for r in others]
    around = Listener(3)
    batcher.submit([Request(r.prompt_ids, r.params, reuse=False) for r in others], around)
    tokens: list[int] = []
    if when == "queue":
        batcher.submit([greedy(prompts(1)[0], 200)], Listener())
        listener = Listener()
        batcher.submit([greedy(prompts(1)[0])], listener).cancel()
    else:
        tickets: list[Any] = []
        ready = threading.Event()

        def note(index: int, event: Event | Failed) -> None:
            tokens.extend([1] if isinstance(event, Token) else [])
            if isinstance(event, PromptProgress if when == "prefill" else Token):
                ready.wait(SECONDS)
                tickets[0].cancel()

        listener = Listener(notify=note)
        tickets.append(batcher.submit([greedy(prompts(1, 3 * PREFILL_CHUNK)[0], 500)], listener))
        ready.set()
    done = listener.wait()[0]
    assert done.reason == "cancelled"
    assert len(tokens) <= (1 if when == "decode" else 0)
    assert done.stats.prompt_tokens == {"queue": 0, "prefill": PREFILL_CHUNK, "decode": 3 * PREFILL_CHUNK}[when]
    assert [done.token_ids for done in around.wait()] == expected


def test_a_cancelled_request_leaves_nothing(batcher: Batcher) -> None:
    for _ in range(20):
        listener = Listener(6)
        ticket = batcher.submit([greedy(ids, 1000) for ids in prompts(6)], listener)
        ticket.cancel()
        assert {done.reason for done in listener.wait()} == {"cancelled"}
    state = batcher.state()
    assert (state.queued, state.running, state.busy_positions) == (0, 0, 0)
    assert state.finished == {"cancelled": 120}


def test_closing_fails_what_is_left(folder: Path) -> None:
    batcher = Batcher(load(folder))
    listener = Listener(6)
    batcher.submit([greedy(ids, 1900) for ids in prompts(6)], listener)
    wait_until(lambda: batcher.state().running == 4)
    assert batcher.close("the server is stopping", timeout=SECONDS)
    assert listener.wait_for_failure() == ["The answer was interrupted: the server is stopping."] * 6
    with pytest.raises(MixqError, match="No new requests are accepted: the server is stopping"):
        batcher.submit([greedy([5])], Listener())


def test_what_cannot_be_run_is_refused_at_once(batcher: Batcher) -> None:
    params = SamplingParams()
    with pytest.raises(PromptTooLong) as caught:
        batcher.submit([Request([5] * 2049, params)], Listener())
    assert (caught.value.tokens, caught.value.context) == (2049, 2048)
    for request in (
        Request([5], SamplingParams(logit_bias={64: 1.0})),
        Request([5], SamplingParams(stop=("x",))),
        Request([5], params, grammar=GrammarSpec()),
        Request([5], params, prompt_logprobs=101),
    ):
        with pytest.raises(UsageError):
            batcher.submit([request], Listener())
    assert batcher.state().finished == {}


def test_one_that_fails_does_not_take_the_others_along(folder: Path) -> None:
    """Not-a-number in one row of a pass."""
    model = load(folder)
    forward = model.network.forward

    def damaged(chunks: Any, **options: Any) -> Any:
        logits = forward(chunks, **options).clone()
        for row, chunk in enumerate(chunks):
            if len(chunks) > 1 and int(chunk.token_ids[0]) >= 0 and chunk.kv_cache.length > 300:
                logits[row] = float("nan")
        return logits

    model.network.forward = damaged  # type: ignore[method-assign]
    batcher = Batcher(model)
    sound, hurt = Listener(2), Listener()
    batcher.submit([greedy(ids, 40) for ids in prompts(2)], sound)
    batcher.submit([greedy(prompts(1, 310)[0], 40)], hurt)
    assert hurt.wait_for_failure() == ["The model's logits are not finite."]
    assert [len(done.token_ids) for done in sound.wait()] == [40, 40]
    assert batcher.state().finished == {"failed": 1, "length": 2}
    batcher.close()


def test_a_pass_that_fails_is_reported_and_the_next_is_run(folder: Path) -> None:
    model = load(folder)
    forward = model.network.forward
    failures = [ModelFileError("a page could not be read.")]

    def once(chunks: Any, **options: Any) -> Any:
        if len(chunks) == 2 and failures:
            raise failures.pop()
        return forward(chunks, **options)

    model.network.forward = once  # type: ignore[method-assign]
    batcher = Batcher(model)
    listener = Listener(2)
    batcher.submit([greedy(ids, 40) for ids in prompts(2)], listener)
    assert listener.wait_for_failure() == ["a page could not be read."] * 2
    assert alone(batcher, greedy([5, 6], 3)).reason == "length"
    batcher.close()


def test_a_bug_ends_everything_with_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    model = load(folder)

    def broken(*args: Any, **options: Any) -> Any:
        raise IndexError("a bug")

    model.network.forward = broken  # type: ignore[method-assign]
    batcher = Batcher(model)
    listener = Listener(6)
    batcher.submit([greedy(ids) for ids in prompts(6)], listener)
    assert listener.wait_for_failure() == ["The answer was interrupted: the engine has failed (IndexError)."] * 6
    with pytest.raises(MixqError, match="No new requests are accepted: the engine has failed"):
        batcher.submit([greedy([5])], Listener())
    assert batcher.close(timeout=SECONDS)
    assert "IndexError" in str(batcher.state().broken)
    assert isinstance(told[0].exc_value, IndexError)


def test_log_probabilities_of_a_prompt(batcher: Batcher) -> None:
    ids = prompts(1, PREFILL_CHUNK + 40)[0]
    listener = Listener()
    batcher.submit([greedy(ids, 1, prompt_logprobs=3)], listener)
    listener.wait()
    scored = listener.events[0][-1]
    assert isinstance(scored, Done)
    logits = batcher.model.forward(ids).log_softmax(-1)
    assert [token.id for token in scored.prompt_tokens] == ids
    assert scored.prompt_tokens[0].logprob is None
    for i, token in enumerate(scored.prompt_tokens[1:]):
        assert token.logprob == logits[i, token.id]
        assert [value for _, value in token.top_logprobs] == logits[i].topk(3).values.tolist()


def test_a_prompt_by_itself(batcher: Batcher) -> None:
    done = alone(batcher, greedy([5, 6, 7], 0))
    assert (done.reason, done.token_ids, done.stats.prompt_tokens) == ("length", (), 3)


def test_tokens_say_which_experts_answered(batcher: Batcher) -> None:
    listener = Listener(3)
    requests = [greedy(ids, 6, experts=i < 2, reuse=False) for i, ids in enumerate(prompts(3))]
    batcher.submit(requests, listener)
    shown = [[t.experts for t in done.tokens] for done in listener.wait()]
    assert shown[2] == [()] * 6
    assert all(len(layers) == 2 for token in shown[0] for layers in token)
    by_itself = Listener()
    batcher.submit(requests[1:2], by_itself)
    assert [t.experts for t in by_itself.wait()[0].tokens] == shown[1]


def test_speed_and_totals_are_counted(batcher: Batcher) -> None:
    done = alone(batcher, greedy(prompts(1)[0], 25))
    state = batcher.state()
    assert state.decode_tokens == done.stats.decode_tokens == 24
    assert state.prompt_tokens == 11
    assert state.decode_tokens_per_second > 0
    assert state.broken is None
