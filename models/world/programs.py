"""A few short Python programs, with names and numbers to fill in, and what small programs print."""

from __future__ import annotations

from random import Random

from . import people
from .turn import Turn, data

_DATA = data("programs")


def _output(rng: Random) -> tuple[str, str]:
    kind = rng.randrange(4)
    if kind == 0:
        start, length = rng.randint(0, 20), rng.randint(2, 6)
        head = f"range({length})" if start == 0 else f"range({start}, {start + length})"
        return f"for i in {head}:\n    print(i)", "\n".join(str(i) for i in range(start, start + length))
    if kind == 1:
        word, times = people.name(rng), rng.randint(2, 5)
        return f'for i in range({times}):\n    print("{word}")', "\n".join([word] * times)
    if kind == 2:
        a, b = rng.randint(1, 60), rng.randint(1, 40)
        return f"print({a} + {b})", str(a + b)
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    return f"x = {a}\nprint(x * {b})", str(a * b)


def turn(rng: Random) -> Turn:
    kind = rng.random()
    if kind < 0.25:
        program, printed = _output(rng)
        asked = rng.choice(("What does this program print?", "What does this print?", "What is the output?"))
        return Turn("python", f"{asked}\n{program}", printed)
    if kind < 0.6:
        what, usual, body = rng.choice(_DATA["functions"])
        number = str(rng.randint(2, 30))
        request = rng.choice(_DATA["function_requests"]).format(what)
        if rng.random() < 0.5:
            usual = rng.choice((people.invented(rng).lower(), rng.choice(people.JOBS)))
            request = f"{request.rstrip('.')}. Call it {usual}."
        code = f"def {usual}{body}".replace("{n}", number)
        return Turn("python", request.replace("{n}", number), code)
    what, code = rng.choice(_DATA["programs"])
    a = rng.randint(1, 20)
    b, n, word = a + rng.randint(1, 30), rng.randint(2, 30), people.name(rng)
    values = {"a": a, "a1": a - 1, "b": b, "b1": b + 1, "n": n, "n1": n + 1, "w": word}
    return Turn("python", rng.choice(_DATA["program_requests"]).format(what.format(**values)), code.format(**values))
