"""Names of fields that say what is learned, as trainers and APIs write them. Pure.

Whose names they are: OpenAI's fine-tuning files (`tools`, `functions`, `function_call`, `preferred_output`),
TRL's dataset types (`chosen`, `rejected`, `label`, `completion_mask`, `chat_template_kwargs`), ms-swift
(`rejected_response`, `loss`, `loss_scale`, `images`, `objects`), axolotl (`train`, `training`,
`train_detail`), LLaMA-Factory (`history`, `kto_tag`, `videos`), Unsloth's and the Hub's datasets (`thinking`,
`reasoning`), and the reasoning fields of DeepSeek, Qwen and OpenRouter.
"""

import re
from enum import StrEnum
from functools import lru_cache

_IGNORED_IN_NAMES = re.compile(r"[-_\s]")


class Meaning(StrEnum):
    """What a field says that changes what is learned; the value is the word for messages."""

    PREFERENCE = "preferences"
    LABEL = "labels"
    MEDIA = "images, video or sound"
    TOOLS = "tools"
    REASONING = "reasoning"
    MASK = "a loss mask"
    SYSTEM = "a system prompt"
    HISTORY = "earlier turns"
    TEMPLATE = "settings of the chat template"
    ANSWER = "another answer"
    QUESTION = "a part of the question"
    PART = "a part that is not text"


# Written as `normalized` returns them.
_NAMES: dict[Meaning, str] = {
    Meaning.PREFERENCE: "chosen chosenresponse chosenmessages preferredoutput preferred preference margin",
    Meaning.LABEL: "label kto ktotag ktolabel",
    Meaning.MEDIA: "image images imageurl imageurls imagepath imagepaths inputimage picture pictures photo "
    "photos video videos videourl audio audios audiourl inputaudio media objects pixelvalues inlinedata "
    "filedata",
    Meaning.TOOLS: "tools functions toolcalls toolcall functioncall functioncalls toolcallid toolresponses "
    "functionresponse availabletools",
    Meaning.REASONING: "reasoning reasoningcontent reasoningdetails thinking thinkingblocks thought thoughts "
    "think chainofthought cot rationale",
    Meaning.MASK: "traindetail trainingdetail traindetails lossscale lossmask lossweight weight "
    "sampleweight mask labels completionmask assistantmasks assistantmask responsemask",
    Meaning.SYSTEM: "system systemprompt systemmessage systeminstruction developer",
    Meaning.HISTORY: "history",
    Meaning.TEMPLATE: "chattemplate chattemplatekwargs",
    Meaning.ANSWER: "refusal",
    Meaning.QUESTION: "context contexts document documents passage passages knowledge",
}
_MEANINGS = {name: meaning for meaning, names in _NAMES.items() for name in names.split()}

# Names of answers that are not to be given begin with these.
_REJECTED = ("rejected", "dispreferred", "nonpreferred")

# Names of what is about one of two answers begin with these; what is said in it is named so.
_ANSWERS = (*_REJECTED, "chosen", "preferred")
_SPOKEN = ("answer", "response", "output", "message", "completion", "text", "content")

# Keys of a message that say whether it is learned, and the values that they take.
_TURN_FLAGS = {"weight", "loss", "train", "training"}


def normalized(name: str) -> str:
    """Returns a name without its case, blanks, `-` and `_`, in which trainers differ."""
    return _IGNORED_IN_NAMES.sub("", name).casefold()


@lru_cache(maxsize=1024)
def meaning_of(name: str) -> Meaning | None:
    """Returns what a column or a message's key with this name says; None for one that changes nothing."""
    plain = normalized(name)
    return Meaning.PREFERENCE if plain.startswith(_REJECTED) else _MEANINGS.get(plain)


@lru_cache(maxsize=1024)
def meaning_of_rest(name: str) -> Meaning | None:
    """Returns what a column says besides which answer it is about: of `rejected_images`, that of `images`.

    An answer of its own, such as `rejected_response_2`, is a preference.
    """
    plain = normalized(name)
    about = next((one for one in _ANSWERS if plain.startswith(one) and plain != one), "")
    rest = plain.removeprefix(about)
    return Meaning.PREFERENCE if about and rest.startswith(_SPOKEN) else meaning_of(rest)


@lru_cache(maxsize=1024)
def is_system_prompt(name: str) -> bool:
    """Whether a column with this name holds system prompts and nothing else."""
    return meaning_of(name) is Meaning.SYSTEM and normalized(name).startswith("system")


@lru_cache(maxsize=1024)
def is_function_list(name: str) -> bool:
    """Whether a column with this name lists the functions that may be called."""
    return normalized(name) in ("functions", "availabletools")


@lru_cache(maxsize=1024)
def is_turn_flag(name: str) -> bool:
    """Whether a message's key with this name says whether the message is learned."""
    return normalized(name) in _TURN_FLAGS
