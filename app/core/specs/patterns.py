"""Patterns of names, and what each allows, in words for messages. Knows no other module."""

# A Hub id (owner/name) or the name of a folder in the models folder; never a path.
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
# A dataset or a repository of the Hub.
HUB_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"
HUB_SPLIT = r"^\w+(\.\w+)*$"
HUB_REVISION = r"^[\w.][\w./-]*$"
# The name of a job or of an adapter.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
# An alias: what apps call a model by, as `support` or `gpt-4o-mini`.
ALIAS = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
SUFFIX = r"^[A-Za-z0-9._-]*$"
# A project, a run or a tag in an experiment tracker. Some of them use these names in paths and URLs.
RUN_NAME = r"^[^/\\#?%:,\"'\x00-\x1f\x7f]+$"
# A function that a model may call, as OpenAI names them.
FUNCTION_NAME = r"^[A-Za-z0-9_-]+$"
# Names of modules: PEFT compiles some of them as regular expressions, which may take exponential time.
MODULE_NAME = r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"
# Without quotes and backslashes: the key becomes part of a path into JSON, which databases quote differently.
METADATA_KEY = r'^[^"\\\x00-\x1f]+$'

# The messages of an evaluation's item, as OpenAI's evals name them.
ITEM_REFERENCE = r"^item\."

_CHARACTERS = "letters A to Z, digits, dots, dashes and underscores"
RULES = {
    MODEL_NAME: f"it is a Hub id (owner/name) or a folder's name, of {_CHARACTERS}",
    HUB_NAME: f"a name of the Hub is owner/name, each of {_CHARACTERS}",
    HUB_SPLIT: "a split is of letters, digits, underscores and dots between them",
    HUB_REVISION: "a revision is a branch, a tag or a commit, without spaces",
    NAME: f"a name is of {_CHARACTERS}, without spaces, and begins with a letter or digit",
    ALIAS: f"an alias is of {_CHARACTERS} and colons, without slashes, and begins with a letter or digit",
    SUFFIX: f"it is of {_CHARACTERS}, without spaces",
    RUN_NAME: "it has no slashes, backslashes, quotes, commas, colons, control characters, and none of # ? %",
    FUNCTION_NAME: "a function's name is of letters A to Z, digits, dashes and underscores",
    MODULE_NAME: "a module's name is of letters, digits, dashes and underscores, with dots between its parts",
    ITEM_REFERENCE: "it names a field of the item, as item.messages does",
    METADATA_KEY: "a key has no quotes, backslashes and control characters",
}


def describe(pattern: str) -> str:
    """What a pattern allows, as a part of a sentence."""
    return RULES.get(pattern, f"it must match {pattern}")
