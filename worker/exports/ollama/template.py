"""A chat template in the syntax of Ollama's: Go's text/template over a list of messages.

Nothing of a Jinja template is translated. Conversations of placeholders are rendered with it, the text around
each placeholder is taken as a piece, and the pieces are tried: other conversations, composed of them by the
rules of the Go template, must be what the Jinja template renders. A template that is not made of such pieces
is refused.

Sources: https://github.com/ollama/ollama/blob/main/docs/template.md and its template package, which merges
messages of one role, passes system messages as `.System` too, and adds the beginning-of-text token itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from app.core.datasets.rows import Message
from app.core.errors import InvalidRequest

Render = Callable[[Sequence[Message], bool], str]

# Private-use characters: no template changes their case or trims them.
_PLACEHOLDER = "\uf8f3{}\uf8f4"
_SYSTEM, _USER, _ANSWER, _USER_2 = (_PLACEHOLDER.format(n) for n in range(4))
_QUOTED = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"})


class TemplateNotComposed(Exception):
    """The chat template is not made of fixed text around each message; the reason, for a person."""


@dataclass(frozen=True)
class FixedText:
    """The fixed text before and after a message's content."""

    before: str
    after: str


@dataclass(frozen=True)
class ChatPieces:
    """The fixed text of a chat template, without the beginning-of-text token that the runtime adds.

    `system`: around the system text; within the first user turn where `is_system_in_user`, of its own
    otherwise; None: the template takes none. `unasked`: what stands in front of a conversation without one.
    `later`: what stands before each user message but the first.
    """

    begin: str
    unasked: str
    system: FixedText | None
    is_system_in_user: bool
    later: str
    user: FixedText
    assistant: FixedText
    prompt: str

    def compose(self, messages: Sequence[Message]) -> str:
        """The text of a conversation whose next message is the assistant's, as the Go template writes it."""
        system = messages[0].content if messages[0].role == "system" else None
        text = self.begin + ("" if system is not None else self.unasked)
        if system is not None and self.system is not None and not self.is_system_in_user:
            text += self.system.before + system + self.system.after
        turns = messages[1:] if system is not None else messages
        for number, message in enumerate(turns):
            turn = self.user if message.role == "user" else self.assistant
            text += self.later if number and message.role == "user" else ""
            inner = ""
            if number == 0 and system is not None and self.system is not None and self.is_system_in_user:
                inner = self.system.before + system + self.system.after
            text += turn.before + inner + message.content + turn.after
        return text + self.prompt

    def to_go(self) -> str:
        """The Go template."""
        text = _literal(self.begin)
        if self.unasked:
            text += "{{ if not .System }}" + _literal(self.unasked) + "{{ end }}"
        system = self.system
        inner = own = ""
        if system is not None:
            marked = _literal(system.before) + "{{ %s }}" + _literal(system.after)
            if self.is_system_in_user:
                inner = "{{ if and $.System (eq $i 1) }}" + marked % "$.System" + "{{ end }}"
            else:
                own = '{{ if eq .Role "system" }}' + marked % ".Content" + "{{ else }}"
        later = "{{ if gt $i 1 }}" + _literal(self.later) + "{{ end }}" if self.later else ""
        user = later + _literal(self.user.before) + inner + "{{ .Content }}" + _literal(self.user.after)
        # An answer that is begun in the request is continued: nothing ends it.
        answer = _literal(self.assistant.before) + "{{ .Content }}{{ if not $last }}"
        answer += _literal(self.assistant.after) + "{{ end }}"
        return (
            text
            + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            + own
            + '{{ if eq .Role "user" }}'
            + user
            + '{{ else if eq .Role "assistant" }}'
            + answer
            + "{{ end }}"
            + ("{{ end }}" if own else "")
            + '{{ if and $last (ne .Role "assistant") }}'
            + _literal(self.prompt)
            + "{{ end }}{{ end }}"
        )


def find_pieces(render: Render, begin_token: str | None) -> ChatPieces:
    """The pieces of a chat template. Raises TemplateNotComposed.

    `render` renders messages, with the prompt for the next answer where its second argument says so.
    `begin_token` is the beginning-of-text token, where the runtime puts it in front of every prompt.
    """
    question, answer = Message("user", _USER), Message("assistant", _ANSWER)
    text = _try(render, [question, answer, Message("user", _USER_2)])
    first, between, rest = _split(text, _USER, _ANSWER)
    middle, last = _split(rest, _USER_2)
    if _split(_try(render, [question]), _USER) != [first, last]:
        raise TemplateNotComposed("it writes the first message otherwise where others follow")
    user_after = _find_end(render, [question], _USER, between) or _common_start(between, last)
    answer_after = _find_end(render, [question, answer], _ANSWER, middle)
    if answer_after is None or not first.endswith(middle.removeprefix(answer_after)):
        answer_after = middle.removesuffix(_common_start(first[::-1], middle[::-1])[::-1])
    user_before = middle.removeprefix(answer_after)
    pieces = ChatPieces(
        begin=first.removesuffix(user_before),
        unasked="",
        system=None,
        is_system_in_user=False,
        later="",
        user=FixedText(user_before, user_after),
        assistant=FixedText(between.removeprefix(user_after), answer_after),
        prompt=last.removeprefix(user_after),
    )
    pieces = _leave_out_begin(_find_system(pieces, render), begin_token)
    _check(pieces, render, begin_token or "")
    return pieces


def _find_end(render: Render, messages: Sequence[Message], mark: str, following: str) -> str | None:
    """What the template writes after the last message, where another message follows too; else None."""
    try:
        end = render(messages, False).rpartition(mark)[2]
    except InvalidRequest:
        return None
    return end if end and following.startswith(end) else None


def _common_start(one: str, other: str) -> str:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in pairs)


def _leave_out_begin(pieces: ChatPieces, token: str | None) -> ChatPieces:
    """The pieces without the token that the runtime adds; it stays before later user messages."""
    if not token:
        return pieces
    if pieces.begin.startswith(token):
        return replace(pieces, begin=pieces.begin.removeprefix(token))
    if not pieces.begin and pieces.user.before.startswith(token):
        user = replace(pieces.user, before=pieces.user.before.removeprefix(token))
        return replace(pieces, user=user, later=token)
    raise TemplateNotComposed(f"it does not begin with {token}, which llama.cpp puts in front")


def _find_system(pieces: ChatPieces, render: Render) -> ChatPieces:
    messages = [Message("system", _SYSTEM), Message("user", _USER)]
    try:
        text = render(messages, True)
    except InvalidRequest:
        return pieces
    if _SYSTEM not in text:
        raise TemplateNotComposed("it leaves out the system message")
    before, between, _after = _split(text, _SYSTEM, _USER)
    head = pieces.begin + pieces.user.before
    if before.startswith(head) and not between.endswith(pieces.user.before):
        # Within the user's turn: behind all that stands before the user's text.
        inner = FixedText(before.removeprefix(head), between)
        return replace(pieces, system=inner, is_system_in_user=True)
    if not between.endswith(pieces.user.before):
        raise TemplateNotComposed("its system message is neither a turn of its own nor in the user's")
    return _split_unasked(pieces, before, between.removesuffix(pieces.user.before))


def _split_unasked(pieces: ChatPieces, before: str, after: str) -> ChatPieces:
    """The pieces with a system turn, and with what a conversation without one begins with in its place."""
    begin = _common_start(before, pieces.begin)
    unasked = pieces.begin.removeprefix(begin)
    return replace(pieces, begin=begin, unasked=unasked, system=FixedText(before.removeprefix(begin), after))


def _check(pieces: ChatPieces, render: Render, begin_token: str) -> None:
    """Compose conversations of the pieces and compare. Raises TemplateNotComposed."""
    user, answer = Message("user", "Why is it so?"), Message("assistant", "It <is> so.\n\nSee {{ x }}.")
    conversations = [[user], [user, answer, user], [user, answer, user, answer, user]]
    if pieces.system is not None:
        conversations += [[Message("system", "Be brief."), *turns] for turns in conversations]
    for messages in conversations:
        if begin_token + pieces.compose(messages) != _try(render, messages):
            raise TemplateNotComposed(
                f"a conversation of {len(messages)} messages is not what its parts make of it"
            )


def _try(render: Render, messages: Sequence[Message]) -> str:
    try:
        return render(messages, True)
    except InvalidRequest as error:
        raise TemplateNotComposed(error.message) from error


def _split(text: str, *marks: str) -> list[str]:
    """The text before, between and after the placeholders. Raises TemplateNotComposed."""
    pieces = []
    for mark in marks:
        if text.count(mark) != 1:
            raise TemplateNotComposed("it leaves out or repeats a message")
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _literal(text: str) -> str:
    """Text in a Go template; as a quoted string where it has characters that Go templates read.

    One brace at its end would make two of those that open an action three.
    """
    is_read = "{{" in text or "}}" in text or text.endswith("{")
    return '{{ "' + text.translate(_QUOTED) + '" }}' if is_read else text
