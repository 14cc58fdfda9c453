"""Arithmetic with small numbers: the answer is the chain of steps that ends in the value.

`25 - (4 * 2) + 3 = 25 - 8 + 3 = 17 + 3 = 20`. Numbers stay between 0 and 150; only a final value may be negative.
"""

from __future__ import annotations

from random import Random

from .turn import Turn, data

PHRASINGS = data("arithmetic")["phrasings"]
LARGEST, SMALLEST = 150, -30


class OutOfRange(Exception):
    """A step that is not allowed: too large, negative before the end, or not divisible."""


def render(tokens: list[str]) -> str:
    return " ".join(tokens).replace("( ", "(").replace(" )", ")")


def _apply(left: int, operator: str, right: int) -> int:
    if min(left, right) < 0:
        raise OutOfRange
    if operator == "+":
        value = left + right
    elif operator == "-":
        value = left - right
    elif operator == "*":
        if max(left, right) > 12 and min(left, right) > 4:
            raise OutOfRange
        value = left * right
    else:
        if right == 0 or left % right or max(right, left // right) > 12:
            raise OutOfRange
        value = left // right
    if not SMALLEST <= value <= LARGEST:
        raise OutOfRange
    return value


def reduce_once(tokens: list[str]) -> list[str]:
    """Compute one operation: in the first innermost parenthesis, products before sums, from the left."""
    end = tokens.index(")") if ")" in tokens else len(tokens)
    start = max((i for i in range(end) if tokens[i] == "("), default=-1) + 1
    operators = [i for i in range(start, end) if tokens[i] in "+-*/"]
    at = next((i for i in operators if tokens[i] in "*/"), operators[0])
    value = _apply(int(tokens[at - 1]), tokens[at], int(tokens[at + 1]))
    if len(operators) == 1 and start > 0:  # the parenthesis holds one number now
        return [*tokens[: start - 1], str(value), *tokens[end + 1 :]]
    return [*tokens[: at - 1], str(value), *tokens[at + 2 :]]


def worked(tokens: list[str]) -> str:
    """Return the chain of steps; raise OutOfRange if a number leaves the range."""
    steps = [render(tokens)]
    while len(tokens) > 1:
        tokens = reduce_once(tokens)
        steps.append(render(tokens))
    return " = ".join(steps)


def _number(rng: Random, near_product: bool) -> int:
    if near_product:
        return rng.randint(1, 12)
    return rng.randint(0, 12) if rng.random() < 0.4 else rng.randint(1, 60 if rng.random() < 0.3 else 30)


def _expression(rng: Random) -> list[str]:
    count = rng.choices((2, 3, 4, 5), (30, 36, 30, 4))[0]
    operators = [rng.choices("+-*/", (34, 30, 28, 8))[0] for _ in range(count - 1)]
    product = [any(o in "*/" for o in operators[max(i - 1, 0) : i + 1]) for i in range(count)]
    numbers = [_number(rng, near) for near in product]
    for i, operator in enumerate(operators):
        if operator == "/":
            numbers[i] = numbers[i + 1] * rng.randint(1, 12)
    opening, closing = [0] * count, [0] * count
    if count > 2 and rng.random() < 0.6:
        first = rng.randrange(count - 1)
        last = min(first + (2 if count > 3 and rng.random() < 0.25 else 1), count - 1)
        if last - first < count - 1:
            opening[first] += 1
            closing[last] += 1
        if count > 3 and last + 2 < count and rng.random() < 0.5:
            opening[last + 1] += 1
            closing[last + 2] += 1
        elif last - first == 2 and rng.random() < 0.5:
            inner = rng.choice((first, first + 1))
            opening[inner] += 1
            closing[inner + 1] += 1
    tokens: list[str] = []
    for i in range(count):
        tokens += ["("] * opening[i] + [str(numbers[i])] + [")"] * closing[i] + operators[i : i + 1]
    return tokens


def turn(rng: Random) -> Turn:
    while True:
        tokens = _expression(rng)
        try:
            answer = worked(tokens)
        except OutOfRange:
            continue
        return Turn("arithmetic", rng.choice(PHRASINGS).format(render(tokens)), answer)
