"""The graders as requests name them: OpenAI's shapes, and three more. Pure.

The fields are those of the OpenAI client's `openai.types.graders`, with `pass_threshold`, which its evals
add. The meaning of each is that of https://developers.openai.com/api/docs/guides/graders.
"""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.core.graders import formula, templates
from app.core.graders.structure import compile_schema

MAX_GRADERS = 50
MAX_TEXT = 100_000
MAX_SOURCE_BYTES = 256_000  # OpenAI's limit for a Python grader

# Thresholds and ranges are within it.
MAX_SCORE = 1e9

Template = Annotated[str, Field(max_length=MAX_TEXT)]
Score = Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE)]


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True)


class SimilarityMetric(StrEnum):
    """How similar two texts are, by OpenAI's names."""

    COSINE = "cosine"
    FUZZY_MATCH = "fuzzy_match"
    BLEU = "bleu"
    GLEU = "gleu"
    METEOR = "meteor"
    ROUGE_1 = "rouge_1"
    ROUGE_2 = "rouge_2"
    ROUGE_3 = "rouge_3"
    ROUGE_4 = "rouge_4"
    ROUGE_5 = "rouge_5"
    ROUGE_L = "rouge_l"


_UNSUPPORTED_METRICS = {
    SimilarityMetric.COSINE: "it needs an embedding model that is the same for all graders",
    SimilarityMetric.METEOR: "it needs the data of WordNet, which is not installed",
}


class TemplateText(_Shape):
    """A text within a message's content."""

    type: Literal["input_text", "output_text"] = Field(description="Both are text.")
    text: Template = Field(description="The text, a template.")


Content = Template | TemplateText | Annotated[list[Template | TemplateText], Field(max_length=100)]


class TemplateMessage(_Shape):
    """A message whose content is a template."""

    role: Literal["user", "assistant", "system", "developer"] = Field(description="Who speaks.")
    content: Content = Field(description="A template, or text parts. No images and no audio.")
    type: Literal["message"] | None = Field(None, description="Always `message`.")

    @property
    def text(self) -> str:
        """The template of the whole content."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return "\n".join(part if isinstance(part, str) else part.text for part in parts)


class _Grader(_Shape):
    """What all graders have. `is_better_when_lower`: a lower score is the better one."""

    is_better_when_lower: ClassVar[bool] = False
    name: str = Field("", max_length=200, description="The grader's name, by which results refer to it.")

    @field_validator("input", "reference", mode="after", check_fields=False)
    @classmethod
    def _check_template(cls, value: object) -> object:
        for text in _texts(value):
            templates.check(text)
        return value


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, TemplateMessage):
        return [value.text]
    return [text for one in value for text in _texts(one)] if isinstance(value, list) else []


class StringCheckGrader(_Grader):
    """Compares two texts: 1 where the operation holds, else 0."""

    type: Literal["string_check"]
    input: Template = Field(description="The text that is graded, a template.")
    reference: Template = Field(description="What it is compared with, a template.")
    operation: Literal["eq", "ne", "like", "ilike"] = Field(
        description="`eq`: equal, `ne`: not equal, `like`: the input contains the reference, `ilike`: the "
        "same in any case."
    )


class TextSimilarityGrader(_Grader):
    """How similar two texts are, from 0 to 1."""

    type: Literal["text_similarity"]
    input: Template = Field(description="The text that is graded, a template.")
    reference: Template = Field(description="What it is compared with, a template.")
    evaluation_metric: SimilarityMetric = Field(description="How similarity is measured.")
    pass_threshold: Score | None = Field(None, description="The lowest score that passes; default 0.5.")

    @field_validator("evaluation_metric")
    @classmethod
    def _is_supported(cls, metric: SimilarityMetric) -> SimilarityMetric:
        if problem := _UNSUPPORTED_METRICS.get(metric):
            supported = ", ".join(one for one in SimilarityMetric if one not in _UNSUPPORTED_METRICS)
            raise ValueError(f"`{metric}` is not supported: {problem}. Use one of {supported}.")
        return metric


class JudgeSampling(_Shape):
    """How the model that grades is sampled."""

    max_completions_tokens: int | None = Field(
        None, ge=1, le=32_768, description="Most tokens that the model may make."
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="For models that think."
    )
    seed: int | None = Field(
        None, ge=-(2**63), le=2**63 - 1, description="The same seed gives the same answer."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="Default 0 for a model of this server.")
    top_p: float | None = Field(None, ge=0, le=1, description="Sample from tokens with this probability.")


_Messages = Annotated[list[TemplateMessage], Field(min_length=1, max_length=100)]


class ScoreModelGrader(_Grader):
    """A model gives the score."""

    type: Literal["score_model"]
    input: _Messages = Field(description="What the model is asked: the rubric, the answer, the reference.")
    model: str = Field(
        min_length=1,
        max_length=400,
        description="A model of this server, or one of the endpoint that `TUNESMITH_JUDGE_URL` names.",
    )
    range: list[Score] | None = Field(None, description="The lowest and the highest score; default [0, 1].")
    sampling_params: JudgeSampling | None = Field(None, description="How the model is sampled.")
    pass_threshold: Score | None = Field(
        None, description="The lowest score that passes; default: the middle of the range."
    )

    @field_validator("range")
    @classmethod
    def _is_ascending(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not (len(value) == 2 and value[0] < value[1]):
            raise ValueError("must be two numbers, the lower one first")
        return value

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest score."""
        low, high = self.range or (0.0, 1.0)
        return low, high


class LabelModelGrader(_Grader):
    """A model chooses one of some labels: 1 where it is one of those that pass, else 0."""

    type: Literal["label_model"]
    input: _Messages = Field(description="What the model is asked.")
    model: str = Field(min_length=1, max_length=400, description="As in `score_model`.")
    labels: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(
        min_length=1, max_length=100, description="The labels to choose from."
    )
    passing_labels: list[str] = Field(min_length=1, description="Those that pass.")
    sampling_params: JudgeSampling | None = Field(
        None, description="Not OpenAI's here. How the model is sampled."
    )

    @field_validator("passing_labels")
    @classmethod
    def _are_labels(cls, value: list[str], found: ValidationInfo) -> list[str]:
        if unknown := sorted(set(value) - set(found.data.get("labels", value))):
            raise ValueError(f"not among the labels: {', '.join(unknown)}")
        return value


class PythonGrader(_Grader):
    """A function `grade(sample, item)` that returns the score, run in a process of its own."""

    type: Literal["python"]
    source: str = Field(min_length=1, description="Python source that defines `grade(sample, item)`.")
    image_tag: str | None = Field(None, description="Accepted; changes nothing.")
    pass_threshold: Score | None = Field(None, description="The lowest score that passes; default 0.5.")

    @field_validator("source")
    @classmethod
    def _defines_grade(cls, source: str) -> str:
        if len(source.encode(errors="replace")) > MAX_SOURCE_BYTES:
            raise ValueError(f"longer than {MAX_SOURCE_BYTES} bytes")
        formula.check_grade_function(source)
        return source


class JsonSchemaGrader(_Grader):
    """Not OpenAI's. 1 where a text is JSON that fits a JSON schema, else 0."""

    type: Literal["json_schema"]
    input: Template = Field("{{sample.output_text}}", description="The text that is graded, a template.")
    json_schema: dict[str, Any] | bool = Field(alias="schema", description="A JSON schema.")

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, Any] | bool) -> dict[str, Any] | bool:
        compile_schema(schema)
        return schema


class ToolCallGrader(_Grader):
    """Not OpenAI's. The share of function calls that are the expected ones."""

    type: Literal["tool_call"]
    reference: Template | list[dict[str, Any]] = Field(
        description="The expected calls, each with a name and arguments; or a template of them, such as "
        "`{{item.tool_calls}}`. None expected: an empty list."
    )
    compare: Literal["arguments", "names"] = Field(
        "arguments", description="`arguments`: names and arguments must be equal; `names`: names alone."
    )
    pass_threshold: Score | None = Field(None, description="The lowest score that passes; default 1.")


class PerplexityGrader(_Grader):
    """Not OpenAI's. The perplexity of a reference answer under the evaluated model; lower is better."""

    is_better_when_lower: ClassVar[bool] = True
    type: Literal["perplexity"]
    reference: Template = Field(description="The reference answer, a template.")
    pass_threshold: Score | None = Field(
        None, gt=0, description="The highest perplexity that passes; without it, there is no pass or fail."
    )


SingleGrader = Annotated[
    StringCheckGrader
    | TextSimilarityGrader
    | ScoreModelGrader
    | LabelModelGrader
    | PythonGrader
    | JsonSchemaGrader
    | ToolCallGrader
    | PerplexityGrader,
    Field(discriminator="type"),
]


class MultiGrader(_Grader):
    """Combines the scores of several graders with a formula."""

    type: Literal["multi"]
    graders: dict[str, SingleGrader] = Field(
        min_length=1,
        max_length=MAX_GRADERS,
        description="The graders by the names that the formula knows them by. A list, or a single grader, is "
        "taken by the graders' own names.",
    )
    calculate_output: str = Field(
        max_length=1000,
        description="A formula of these names: `+ - * / ^`, `min max abs floor ceil exp sqrt log`.",
    )
    pass_threshold: Score | None = Field(
        None, description="Not OpenAI's here. The lowest score that passes; default 0.5."
    )

    @field_validator("graders", mode="before")
    @classmethod
    def _by_name(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            value = [value]
        if isinstance(value, list):
            return {str(one.get("name", "")): one for one in value if isinstance(one, dict)}
        return value

    @model_validator(mode="after")
    def _check_formula(self) -> "MultiGrader":
        formula.check(self.calculate_output, self.graders)
        return self


Grader = Annotated[SingleGrader | MultiGrader, Field(discriminator="type")]
AnyGrader = (
    StringCheckGrader
    | TextSimilarityGrader
    | ScoreModelGrader
    | LabelModelGrader
    | PythonGrader
    | JsonSchemaGrader
    | ToolCallGrader
    | PerplexityGrader
    | MultiGrader
)
grader_adapter: TypeAdapter[AnyGrader] = TypeAdapter(Grader)
