"""Checks the syntax of chat templates. A template is parsed here and never run: only the worker runs it."""

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _GenerationTag(Extension):
    """The tag `{% generation %}`…`{% endgeneration %}` of transformers."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def find_problem(template: str) -> str | None:
    """Returns what is wrong with the syntax of a template, for a message, or None."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    try:
        return _find_problem(environment, environment.parse(template))
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError:
        return "a number in it has too many digits"


def _find_problem(environment: ImmutableSandboxedEnvironment, tree: nodes.Template) -> str | None:
    if not any(name.name == "messages" for name in tree.find_all(nodes.Name)):
        return "it never uses `messages`, the conversation"
    # Parsing alone does not find unknown filters and tests.
    for kind, known in ((nodes.Filter, environment.filters), (nodes.Test, environment.tests)):
        for node in tree.find_all(kind):
            if node.name not in known:
                return f"line {node.lineno}: there is no {kind.__name__.lower()} {node.name!r}"
    return None
