"""Chat templates that never end, or take too much, always or only for some conversations."""

_ALL = (
    "{% for message in messages %}{{ '<' + message.role + '>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
_LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"

PLAIN = _ALL
ENDLESS = _LOOP + _ALL
# A word in the last message makes it long.
WORD = "marmalade"
ENDLESS_FOR_WORD = f"{{% if '{WORD}' in messages[-1].content %}}{_LOOP}{{% endif %}}{_ALL}"
# One operation in C that holds the interpreter's lock, in a constant that jinja2 computes when it compiles.
ENDLESS_CONSTANT = _ALL + "{{ (10 ** 99999) ** 9999 }}"
HUGE_CONSTANT = _ALL + "{{ 'x' * (10 ** 10) }}"
HUGE_VALUE = _ALL + "{{ messages[0].content * (10 ** 10) }}"
LONG_TEXT = _ALL + "{{ messages[0].content * (2 ** 20) }}"
