"""Code in answers, and the checks of programs: the numbers from 1 to 100, and Snake.

Contract: programs are checked without running them: whether they parse, use what the question requires, and use no
undefined names. `--execute` runs them too (`execution`).
"""

from __future__ import annotations

import ast
import builtins
import re

from mixq.measure.suite.reading import RIGHT, Verdict, wrong

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)
_DRAWS = {"addch", "addstr", "addnstr", "insch", "border", "box"}


def fenced_blocks(text: str) -> list[tuple[str, str]]:
    """Return the label ("python") and content of each fenced block of a Markdown text; the last may be unclosed."""
    return [(match[2].lower(), match[3]) for match in _FENCE.finditer(text)]


def python_code(text: str) -> str:
    """Return the longest Python block, or the whole answer if it has no block and is a program.

    Raises:
        SyntaxError: a block does not parse as Python.
        LookupError: the answer has no code.
    """
    blocks = fenced_blocks(text)
    labelled = [code for label, code in blocks if label in ("python", "py", "python3")]
    candidates = labelled or [code for label, code in blocks if not label]
    if not candidates:
        code = text.strip()
        parts = ast.walk(parsed(code)) if _parses(code) else ()
        # A single word is valid Python too, so a program must have a call, an import or a loop.
        if not any(isinstance(part, ast.Call | ast.Import | ast.ImportFrom | ast.For | ast.While) for part in parts):
            raise LookupError("no Python code")
        return code
    whole = [code for code in candidates if _parses(code)]
    if not whole:
        parsed(max(candidates, key=len))
    return max(whole, key=len)


def parsed(code: str) -> ast.Module:
    """Return the syntax tree of a program.

    Raises:
        SyntaxError: it does not parse, or is nested too deep for Python.
    """
    try:
        return ast.parse(code)
    except (ValueError, RecursionError, MemoryError) as error:  # zero bytes; nested too deep
        raise SyntaxError(str(error) or "nested too deep") from None


def _parses(code: str) -> bool:
    try:
        parsed(code)
    except SyntaxError:
        return False
    return True


def numbers(answer: str, language: str) -> Verdict:
    """Right is a program that prints, and counts from 1 to 100."""
    tree = _program(answer)
    if isinstance(tree, Verdict):
        return tree
    if "print" not in _called(tree):
        return wrong("prints nothing")
    if any(_is_endless(node) for node in ast.walk(tree)):
        return wrong("has an infinite loop")
    return _defined(tree) if (counted := _counts(tree)) is None else wrong(counted)


def _counts(tree: ast.Module) -> str | None:
    """Return what a program counts instead of 1 to 100, by its ranges, or else by its numbers."""
    ranges = [found for node in ast.walk(tree) if (found := _literal_range(node)) is not None]
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is int}
    if range(1, 101) in ranges or (range(100) in ranges and 1 in constants):
        return None
    if ranges:
        return f"counts {ranges[0][0]} to {ranges[0][-1]}" if ranges[0] else "counts nothing"
    return None if constants & {0, 1} and constants & {100, 101} else "does not count from 1 to 100"


def _literal_range(node: ast.AST) -> range | None:
    """Return the range of a call such as `range(1, 101)`."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range"):
        return None
    values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    ends = [value for value in values if type(value) is int]
    return range(*ends) if len(ends) == len(node.args) in (1, 2) else None


def _is_endless(node: ast.AST) -> bool:
    """Whether a node is a `while` loop without an end, as far as names and constants show."""
    if not isinstance(node, ast.While) or any(isinstance(part, ast.Call) for part in ast.walk(node.test)):
        return False
    tested = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
    return not any(
        isinstance(part, ast.Break | ast.Return | ast.Raise)
        or (isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id in tested)
        for part in ast.walk(node)
    )


def one_to_hundred(output: str) -> Verdict:
    """Right is 1 to 100 in order, between white space or commas, perhaps in the brackets of a list."""
    found = re.findall(r"[^\s,\[\]]+", output)
    if found == [str(number) for number in range(1, 101)]:
        return RIGHT
    if not found:
        return wrong("prints nothing")
    shown = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}, {len(found)} values"
    return wrong(f"prints {shown[:60]}")


def snake(answer: str, language: str) -> Verdict:
    """Right is a program that parses, imports what it uses, and reads keys and draws with curses in a loop."""
    tree = _program(answer)
    if isinstance(tree, Verdict):
        return tree
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    if not any(name.split(".")[0] == "curses" for name in imported):
        return wrong("does not import curses")
    for what, names in (
        ("starts no curses screen", {"wrapper", "initscr"}),
        ("reads no keys", {"getch", "getkey", "get_wch"}),
        ("draws nothing", _DRAWS),
    ):
        if not _called(tree) & names:
            return wrong(what)
    if not any(isinstance(node, ast.While) for node in ast.walk(tree)):
        return wrong("has no game loop")
    return _defined(tree)


def _program(answer: str) -> ast.Module | Verdict:
    """Return the program of an answer, or the verdict on an answer without one."""
    try:
        return parsed(python_code(answer))
    except SyntaxError as error:
        return wrong(f"the code does not parse: {error.msg} in line {error.lineno}")
    except LookupError:
        return wrong("no Python code")


def _called(tree: ast.Module) -> set[str]:
    """Return the names of the functions and methods that a program calls."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {
        f.attr if isinstance(f, ast.Attribute) else f.id for f in functions if isinstance(f, ast.Attribute | ast.Name)
    }


def _defined(tree: ast.Module) -> Verdict:
    """Right is a program that binds all names that it reads, in any scope."""
    bound, read = set(dir(builtins)) | {"__name__", "__file__"}, []
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                read.append(name)
            case ast.Name(id=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.arg(arg=name) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                if name == "*":
                    return RIGHT
                bound.add(other or name.split(".")[0])
    unknown = next((name for name in read if name not in bound), None)
    return RIGHT if unknown is None else wrong(f"uses {unknown}, which is not defined")
