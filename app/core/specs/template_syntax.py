"""Can a chat template be read? It is parsed, never run: a template is a program, and the worker runs it."""

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _GenerationTag(Extension):
    """`{% generation %}`…`{% endgeneration %}`, as transformers knows it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def find_problem(template: str) -> str | None:
    """What is wrong with the template's text, or None."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    try:
        return _find_problem(environment, environment.parse(template))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"


def _find_problem(environment: ImmutableSandboxedEnvironment, tree: nodes.Template) -> str | None:
    if not any(name.name == "messages" for name in tree.find_all(nodes.Name)):
        return "it never uses `messages`, the conversation"
    # Only compiling would tell of these.
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in tree.find_all(kind):
            if node.name not in known:
                return f"line {node.lineno}: there is no {kind.__name__.lower()} {node.name!r}"
    return None
