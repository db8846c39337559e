"""The formulas of multigraders, evaluated without `eval`, and the check of a Python grader's source. Pure."""

import ast
import math
from collections.abc import Callable, Iterable, Mapping

_MAX_NODES = 500
_FUNCTIONS: dict[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: lambda left, right: left / right,
    ast.Pow: math.pow,
}


def check(text: str, names: Iterable[str]) -> None:
    """Raise ValueError for a formula that can't be parsed, or that uses a name that is not one of these."""
    known = set(names)
    for node in ast.walk(_parse(text)):
        if isinstance(node, ast.Name) and node.id not in known and node.id not in _FUNCTIONS:
            raise ValueError(f"calculate_output: there is no grader {node.id!r}")


def evaluate(text: str, scores: Mapping[str, float]) -> float:
    """Returns the formula's value. Raises ValueError where there is none, as for a division by 0."""
    try:
        value = _evaluate(_parse(text).body, scores)
    except (ArithmeticError, TypeError) as error:
        raise ValueError(f"calculate_output: {error}") from None
    if not math.isfinite(value):
        raise ValueError("calculate_output: the result is not a finite number")
    return value


def check_grade_function(source: str) -> None:
    """Raise ValueError for Python source that can't be parsed or defines no `grade` of two arguments."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
        raise ValueError(f"{line}{error.msg if isinstance(error, SyntaxError) else error}") from None
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "grade"]
    if not found:
        raise ValueError("must define `def grade(sample, item)`")
    arguments = found[-1].args
    if len(arguments.posonlyargs) + len(arguments.args) != 2 and arguments.vararg is None:
        raise ValueError("`grade` must take two arguments, the sample and the item")


def _parse(text: str) -> ast.Expression:
    try:
        # OpenAI writes a power as `^`; Python's `**` binds as it does.
        tree = ast.parse(text.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"calculate_output: {text!r} is no formula") from None
    nodes = list(ast.walk(tree))
    if len(nodes) > _MAX_NODES:
        raise ValueError("calculate_output: the formula is too long")
    for node in nodes:
        _check_node(node)
    return tree


def _check_node(node: ast.AST) -> None:
    match node:
        case ast.Expression() | ast.Name() | ast.Load() | ast.UAdd() | ast.USub():
            return
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float()):
            return
        case ast.BinOp(op=op) if type(op) in _OPERATORS:
            return
        case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
            return
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return
        case _ if isinstance(node, ast.operator) and type(node) in _OPERATORS:
            return
    raise ValueError(
        f"calculate_output: {ast.unparse(node) or type(node).__name__!r} can't be part of a formula"
    )


def _evaluate(node: ast.expr, scores: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float):
            return float(value)
        case ast.Name(id=name) if name in scores:
            return scores[name]
        case ast.UnaryOp(op=op, operand=operand):
            value = _evaluate(operand, scores)
            return -value if isinstance(op, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, scores), _evaluate(right, scores))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return float(_FUNCTIONS[name](*(_evaluate(argument, scores) for argument in arguments)))
    raise ValueError(f"calculate_output: there is no score {ast.unparse(node)!r}")
