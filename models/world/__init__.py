"""What the demo model learns: conversations to train on, and unseen questions with exact answers.

Deterministic: the same `Random` gives the same text. Every question has one answer, a function of its text. A sixteenth
of all questions, chosen by the hash of the text, is never used for training; `questions` draws only from it. The facts
and sentences of a family are in a TOML file next to its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from . import about, arithmetic, capitals, comparisons, counting, greetings, heads_of_state, programs, records, words
from .turn import Turn, is_held_out

# family -> generator, percent of the training turns in the first half, percent in the second
FAMILIES: dict[str, tuple[Callable[[Random], Turn], int, int]] = {
    "arithmetic": (arithmetic.turn, 28, 22),
    "comparisons": (comparisons.turn, 13, 36),
    "capitals": (capitals.turn, 9, 7),
    "heads of state": (heads_of_state.turn, 8, 3),
    "json": (records.turn, 9, 8),
    "counting": (counting.turn, 11, 10),
    "python": (programs.turn, 8, 7),
    "greetings": (greetings.turn, 3, 2),
    "mixq": (about.turn, 6, 2),
    "words": (words.turn, 5, 3),
}
SYSTEMS = (
    "You are a helpful assistant.",
    "You are mixq, a small demo model.",
    "Answer the question.",
    "Answer exactly and briefly.",
    "You are a friendly assistant. Be brief.",
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, and a system prompt before the first question ("" for none)."""

    system: str
    turns: tuple[Turn, ...]


def _seen_turn(rng: Random, late: bool) -> Turn:
    shares = [after if late else before for _, before, after in FAMILIES.values()]
    generate, _, _ = rng.choices(list(FAMILIES.values()), shares)[0]
    while True:
        turn = generate(rng)
        if not is_held_out(turn.user):
            return turn


def conversation(rng: Random, turns: int | None = None, late: bool = False) -> Conversation:
    """A conversation for training: mostly one turn; some have a system prompt, follow-ups, a name to remember.

    `late`: use the second half's shares of the families.
    """
    count = turns or rng.choices((1, 2, 3, 4), (70, 15, 10, 5))[0]
    made = [_seen_turn(rng, late) for _ in range(count)]
    if count > 1 and rng.random() < 0.15:
        told, asked = greetings.introduction(rng)
        if not is_held_out(told.user):
            made[0], made[rng.randrange(1, count)] = told, asked
    for i in range(1, count):
        if made[i - 1].assistant.startswith("The capital of ") and rng.random() < 0.3:
            made[i] = capitals.follow_up(rng)
    return Conversation(rng.choice(SYSTEMS) if rng.random() < 0.1 else "", tuple(made))


def unseen_turn(rng: Random, family: str) -> Turn:
    """Return a question of a family that is not in the training data."""
    generate, _, _ = FAMILIES[family]
    while True:
        turn = generate(rng)
        if is_held_out(turn.user):
            return turn


def questions(count: int, seed: int) -> list[Turn]:
    """Return `count` different unseen questions, one family after the other."""
    rng = Random(f"questions {seed}")
    families = list(FAMILIES)
    chosen: dict[str, Turn] = {}
    while len(chosen) < count:
        turn = unseen_turn(rng, families[len(chosen) % len(families)])
        chosen.setdefault(turn.user, turn)
    return list(chosen.values())


def is_exact(turn: Turn, text: str) -> bool:
    """Whether the model's text is the answer, character by character; only outer white space may differ."""
    return text.strip() == turn.assistant


def score(answered: Iterable[tuple[Turn, str]]) -> dict[str, tuple[int, int]]:
    """Family -> (exact answers, questions)."""
    table = dict.fromkeys(FAMILIES, (0, 0))
    for turn, text in answered:
        exact, asked = table[turn.family]
        table[turn.family] = (exact + is_exact(turn, text), asked + 1)
    return {family: counts for family, counts in table.items() if counts[1]}
