"""A few short Python programs, with names and numbers to fill in, and what small programs print."""

from __future__ import annotations

from random import Random

from . import people
from .turn import Turn, listed

# what the function does, its usual name, its body; {n} is a number
FUNCTIONS = (
    ("adds two numbers", "add", "(a, b):\n    return a + b"),
    ("subtracts two numbers", "subtract", "(a, b):\n    return a - b"),
    ("multiplies two numbers", "multiply", "(a, b):\n    return a * b"),
    ("adds {n} to a number", "add_{n}", "(x):\n    return x + {n}"),
    ("multiplies a number by {n}", "times_{n}", "(x):\n    return x * {n}"),
    ("squares a number", "square", "(x):\n    return x * x"),
    ("checks if a number is even", "is_even", "(x):\n    return x % 2 == 0"),
    ("checks if a number is larger than {n}", "is_larger", "(x):\n    return x > {n}"),
    ("returns the larger of two numbers", "larger", "(a, b):\n    return a if a > b else b"),
    ("reverses a string", "reverse", "(text):\n    return text[::-1]"),
    ("counts the letters of a string", "count_letters", "(text):\n    return len(text)"),
    ("sums a list", "total", "(items):\n    return sum(items)"),
    ("returns the first {n} items of a list", "first", "(items):\n    return items[:{n}]"),
    (
        "computes the factorial of a number",
        "factorial",
        "(n):\n    result = 1\n    for i in range(2, n + 1):\n        result = result * i\n    return result",
    ),
    ("greets a person by name", "greet", '(name):\n    print("Hello " + name)'),
)
FUNCTION_REQUESTS = listed(
    "Write a Python function that {}.|Write a function in Python that {}.|Python function that {}|"
    "Please write a Python function that {}.|I need a Python function that {}.|Show me a Python function that {}.",
    "|",
)
# what the program does, the program; {a} < {b} and {n} are numbers, {w} is a name
PROGRAMS = (
    ("prints the numbers from {a} to {b}", "for i in range({a}, {b1}):\n    print(i)"),
    ("counts down from {b} to {a}", "for i in range({b}, {a1}, -1):\n    print(i)"),
    ("prints hello {n} times", 'for i in range({n}):\n    print("hello")'),
    ("prints Hello {w}", 'print("Hello {w}")'),
    ("prints {w} {n} times", 'for i in range({n}):\n    print("{w}")'),
    ("prints the sum of {a} and {b}", "print({a} + {b})"),
    ("prints the squares from {a} to {b}", "for i in range({a}, {b1}):\n    print(i * i)"),
    ("prints the even numbers up to {n}", "for i in range(0, {n1}, 2):\n    print(i)"),
    ("asks for a name and greets", 'name = input("Name: ")\nprint("Hello " + name)'),
    ("sums the numbers from {a} to {b}", "print(sum(range({a}, {b1})))"),
)
PROGRAM_REQUESTS = listed(
    "Write a Python program that {}.|Python program that {}|Please write a Python program that {}.|"
    "Write a short Python program that {}.|Show me Python code that {}.",
    "|",
)


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
        what, usual, body = rng.choice(FUNCTIONS)
        number = rng.randint(2, 30)
        request = rng.choice(FUNCTION_REQUESTS).format(what)
        if rng.random() < 0.5:
            usual = rng.choice((people.invented(rng).lower(), rng.choice(people.JOBS)))
            request = f"{request.rstrip('.')}. Call it {usual}."
        fill = str(number)
        code = f"def {usual}{body}".replace("{n}", fill)
        return Turn("python", request.replace("{n}", fill), code)
    what, code = rng.choice(PROGRAMS)
    a = rng.randint(1, 20)
    b, n, word = a + rng.randint(1, 30), rng.randint(2, 30), people.name(rng)
    values = {"a": a, "a1": a - 1, "b": b, "b1": b + 1, "n": n, "n1": n + 1, "w": word}
    return Turn("python", rng.choice(PROGRAM_REQUESTS).format(what.format(**values)), code.format(**values))
