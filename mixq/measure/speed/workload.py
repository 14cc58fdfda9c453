"""The tests of a bench, and the bytes and operations of each.

Contract: computed from shapes. A decode step reads each weight that it uses once, and the KV cache up to its position;
a prompt is limited by operations. Activations stay in the CPU's caches and are not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mixq.config import ModelConfig
from mixq.errors import UsageError
from mixq.formats.architecture import parameters
from mixq.plan.sizes import ModelSizes, positions_seen, prompt_operations


@dataclass(frozen=True, slots=True)
class Workload:
    """A prompt of `prompt` tokens, or `gen` tokens one by one, with `depth` tokens in the KV cache."""

    prompt: int
    gen: int
    depth: int

    @property
    def name(self) -> str:
        """The test's name as llama-bench writes it: pp512, tg128 @ d4096."""
        what = f"pp{self.prompt}" if self.prompt else f"tg{self.gen}"
        return f"{what} @ d{self.depth}" if self.depth else what

    @property
    def tokens(self) -> int:
        """Tokens whose time is measured."""
        return self.prompt or self.gen

    @property
    def positions(self) -> int:
        """Positions of the KV cache that the test needs."""
        return self.depth + self.tokens


def workloads(prompts: Sequence[int], gens: Sequence[int], depths: Sequence[int]) -> list[Workload]:
    """Return every prompt and every generation at every depth; a length of 0 is skipped.

    Raises:
        UsageError: there is no test.
    """
    tests = [
        test
        for depth in depths
        for test in (*(Workload(p, 0, depth) for p in prompts if p), *(Workload(0, n, depth) for n in gens if n))
    ]
    if not tests:
        raise UsageError("There is no test to run.", hint="Set a prompt length (-p 512) or a reply length (-n 128).")
    return list(dict.fromkeys(tests))


def check_positions(tests: Sequence[Workload], context: int, maximum: int) -> None:
    """Check that the tests fit into the context.

    Raises:
        UsageError: the longest test needs more positions than the context has.
    """
    longest = max(tests, key=lambda test: test.positions)
    if longest.positions > maximum:
        raise UsageError(f"{longest.name} needs {longest.positions} positions; the model has at most {maximum}.")
    if longest.positions > context:
        raise UsageError(
            f"{longest.name} needs {longest.positions} positions; the context has {context}.",
            hint="Omit --context: the default is what the tests need.",
        )


def decode_bytes(sizes: ModelSizes, kv_bytes_per_position: int, test: Workload) -> float:
    """Return the bytes that a decode step of `test` reads, on average over its steps."""
    return sizes.token + kv_bytes_per_position * positions_seen(sizes.config, test.tokens, test.depth) / test.tokens


def weight_count(config: ModelConfig) -> int:
    """Return the model's weights."""
    return sum(parameter.numel for parameter in parameters(config))


def operations_per_token(config: ModelConfig, test: Workload) -> float:
    """Return the floating-point operations per token; in a prompt, the head is computed only once."""
    heads = 2.0 * config.vocab_size * config.hidden_size * (0 if test.prompt else test.tokens - 1)
    return (prompt_operations(config, test.tokens, test.depth) + heads) / test.tokens
