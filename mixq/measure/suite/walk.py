"""What a small Python program prints, found by walking through its tree; no part of the program is executed by Python.

Contract: whole numbers, texts, lists and ranges; assignments, `for`, `while`, `if`, functions, `print`, f-strings and a
few builtins. Whatever else a program has raises `NotUnderstood`. Steps, sizes and depth are bounded, so a loop without
end, or a program that makes huge values, raises it too.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mixq.measure.suite.code_blocks import parsed

MAX_STEPS = 100_000
MAX_SIZE = 100_000
MAX_NUMBER = 10**12
MAX_DEPTH = 20

_OPERATORS: Mapping[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class NotUnderstood(Exception):
    """The program has something that is not followed here."""


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


def printed(code: str) -> str:
    """Return what a program prints.

    Raises:
        NotUnderstood: see above.
        SyntaxError: it is no Python.
    """
    walker = _Walker()
    try:
        walker.run(parsed(code).body, {"__name__": "__main__"})
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, AttributeError, RecursionError) as error:
        raise NotUnderstood(f"{type(error).__name__}: {error}") from None
    except (_Return, _Break, _Continue):
        raise NotUnderstood("return, break or continue in an odd place") from None
    return "".join(walker.output)


class _Walker:
    def __init__(self) -> None:
        self.output: list[str] = []
        self.functions: dict[str, ast.FunctionDef] = {}
        self.steps = 0
        self.depth = 0
        self.size = 0

    def run(self, body: Iterable[ast.stmt], names: dict[str, Any]) -> None:
        for statement in body:
            self._step()
            self._statement(statement, names)

    def _step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise NotUnderstood("it does not come to its end")

    def _statement(self, node: ast.stmt, names: dict[str, Any]) -> None:
        match node:
            case ast.Expr():
                self.value(node.value, names)
            case ast.Assign(targets=[target]):
                self._bind(target, self.value(node.value, names), names)
            case ast.AnnAssign(value=ast.expr() as value):
                self._bind(node.target, self.value(value, names), names)
            case ast.AugAssign(target=ast.Name(id=name)):
                names[name] = self._apply(node.op, names[name], self.value(node.value, names))
            case ast.If():
                self.run(node.body if self.value(node.test, names) else node.orelse, names)
            case ast.For():
                self._for(node, names)
            case ast.While():
                self._while(node, names)
            case ast.FunctionDef(decorator_list=[]):
                self.functions[node.name] = node
            case ast.Return():
                raise _Return(None if node.value is None else self.value(node.value, names))
            case ast.Break():
                raise _Break
            case ast.Continue():
                raise _Continue
            case ast.Pass():
                pass
            case _:
                raise NotUnderstood(f"{type(node).__name__} in line {node.lineno}")

    def _bind(self, target: ast.expr, value: Any, names: dict[str, Any]) -> None:
        if not isinstance(target, ast.Name):
            raise NotUnderstood(f"an assignment to {type(target).__name__}")
        names[target.id] = value

    def _for(self, node: ast.For, names: dict[str, Any]) -> None:
        for item in self._items(self.value(node.iter, names)):
            self._step()
            self._bind(node.target, item, names)
            try:
                self.run(node.body, names)
            except _Break:
                return
            except _Continue:
                continue
        self.run(node.orelse, names)

    def _while(self, node: ast.While, names: dict[str, Any]) -> None:
        while self.value(node.test, names):
            self._step()
            try:
                self.run(node.body, names)
            except _Break:
                return
            except _Continue:
                continue
        self.run(node.orelse, names)

    def value(self, node: ast.expr, names: dict[str, Any]) -> Any:
        """Return an expression's value."""
        self._step()
        match node:
            case ast.Constant(value=int() | str() | None):
                return node.value
            case ast.Name(id=name):
                return names[name]
            case ast.BinOp():
                return self._apply(node.op, self.value(node.left, names), self.value(node.right, names))
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(self.value(node.operand, names))
            case ast.UnaryOp(op=ast.Not()):
                return not self.value(node.operand, names)
            case ast.Compare(ops=[op], comparators=[right]) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](self.value(node.left, names), self.value(right, names))
            case ast.List() | ast.Tuple():
                return [self.value(item, names) for item in node.elts]
            case ast.ListComp(generators=[loop]) | ast.GeneratorExp(generators=[loop]):
                return self._comprehension(node.elt, loop, names)
            case ast.JoinedStr():
                return self._bounded("".join(self._piece(part, names) for part in node.values))
            case ast.Call():
                return self._call(node, names)
        raise NotUnderstood(f"{type(node).__name__} in line {node.lineno}")

    def _piece(self, part: ast.expr, names: dict[str, Any]) -> str:
        if isinstance(part, ast.FormattedValue) and part.format_spec is None and part.conversion == -1:
            return str(self.value(part.value, names))
        return str(self.value(part, names))

    def _comprehension(self, result: ast.expr, loop: ast.comprehension, names: dict[str, Any]) -> list[Any]:
        inner, found = dict(names), []
        for item in self._items(self.value(loop.iter, names)):
            self._bind(loop.target, item, inner)
            if all(self.value(test, inner) for test in loop.ifs):
                found.append(self.value(result, inner))
        return found

    def _call(self, node: ast.Call, names: dict[str, Any]) -> Any:
        arguments: list[Any] = []
        mapped = isinstance(node.func, ast.Name) and node.func.id == "map"
        for argument in node.args[1:] if mapped else node.args:
            if isinstance(argument, ast.Starred):
                arguments += self._items(self.value(argument.value, names))
            else:
                arguments.append(self.value(argument, names))
        keywords = {word.arg: self.value(word.value, names) for word in node.keywords if word.arg}
        match node.func:
            case ast.Name(id="print"):
                return self._print(arguments, keywords)
            case ast.Name(id="range"):
                return range(*map(self._number, arguments))
            case ast.Name(id="str"):
                return str(*arguments)
            case ast.Name(id="int"):
                return int(*arguments)
            case ast.Name(id="len"):
                return len(*arguments)
            case ast.Name(id="list" | "tuple"):
                return self._items(*arguments)
            case ast.Name(id="map") if isinstance(node.args[0], ast.Name) and node.args[0].id in ("str", "int"):
                return [(str if node.args[0].id == "str" else int)(item) for item in self._items(*arguments)]
            case ast.Name(id=name) if name in self.functions:
                return self._function(self.functions[name], arguments, keywords)
            case ast.Attribute(value=value, attr="join"):
                return self._bounded(str(self.value(value, names)).join(self._items(*arguments)))
            case ast.Attribute(value=value, attr="append") if isinstance(items := self.value(value, names), list):
                return items.append(*arguments)
        raise NotUnderstood(f"a call in line {node.lineno}")

    def _function(self, function: ast.FunctionDef, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        parameters = [parameter.arg for parameter in function.args.args]
        if len(arguments) > len(parameters) or self.depth >= MAX_DEPTH:
            raise NotUnderstood(f"the call of {function.name}")
        defaults = function.args.defaults
        bound = {
            name: self.value(value, {})
            for name, value in zip(parameters[len(parameters) - len(defaults) :], defaults, strict=True)
        }
        bound |= dict(zip(parameters, arguments, strict=False)) | keywords
        self.depth += 1
        try:
            self.run(function.body, bound)
        except _Return as end:
            return end.value
        finally:
            self.depth -= 1
        return None

    def _print(self, arguments: list[Any], keywords: dict[str, Any]) -> None:
        separator, end = keywords.get("sep", " "), keywords.get("end", "\n")
        text = self._bounded(str(" " if separator is None else separator).join(map(str, arguments)))
        self.size += len(text) + len(str(end))
        if self.size > MAX_SIZE:
            raise NotUnderstood("it prints without end")
        self.output.append(text + str("\n" if end is None else end))

    def _items(self, value: Any) -> list[Any]:
        if not isinstance(value, range | list | str) or len(value) > MAX_SIZE:
            raise NotUnderstood("a loop over something large or unknown")
        return list(value)

    def _apply(self, op: ast.operator, left: Any, right: Any) -> Any:
        if type(op) not in _OPERATORS:
            raise NotUnderstood(type(op).__name__)
        if isinstance(op, ast.Mult) and not (isinstance(left, int) and isinstance(right, int)):
            raise NotUnderstood("texts are multiplied")
        if isinstance(op, ast.Mod) and isinstance(left, str):
            raise NotUnderstood("a format with %")
        return self._bounded(_OPERATORS[type(op)](left, right))

    def _number(self, value: Any) -> int:
        if not isinstance(value, int):
            raise NotUnderstood(f"{type(value).__name__} where a number should be")
        return value

    def _bounded(self, value: Any) -> Any:
        if (isinstance(value, int) and abs(value) > MAX_NUMBER) or (
            isinstance(value, str | list) and len(value) > MAX_SIZE
        ):
            raise NotUnderstood("a value without bounds")
        return value
