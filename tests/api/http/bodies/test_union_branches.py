"""Of the errors of a union, those of the branch that was meant are shown."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError

from app.api.http.bodies.validation import describe


class Circle(BaseModel):
    type: Literal["circle"]
    radius: int


class Square(BaseModel):
    type: Literal["square"]
    side: Annotated[list[int], Field(min_length=1)]


class Drawing(BaseModel):
    shape: Circle | Square | str | None = None
    shapes: str | list[Circle | Square] = ""
    tagged: list[Annotated[Circle | Square, Field(discriminator="type")]] = []
    steps: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    points: list[str] | list[int] | list[list[int]] = []
    names: dict[str, str | list[str]] = {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"shape": {"type": "circle", "radius": "x"}}, "shape.radius: must be a valid integer"),
        ({"shape": {"type": "square", "side": []}}, "shape.side is empty."),
        ({"shapes": [{"type": "circle", "radius": 1}, {"type": "square"}]}, "shapes.1.side is missing."),
        ({"tagged": [{"type": "square"}]}, "tagged.0.side is missing."),
        ({"steps": 0}, "steps: must be greater than or equal to 1 (found 0)."),
        ({"steps": "x"}, "steps: must be 'auto'; or: must be a valid integer"),
        ({"points": [1, 2, []]}, "points.2: must be a valid integer"),
        ({"points": [[1], [2, "x"]]}, "points.1.1: must be a valid integer"),
        ({"names": {"a": "b", "c": ["d", 5]}}, "names.c.1: must be a valid string (found 5)."),
    ],
)
def test_only_the_branch_that_was_meant_is_described(body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate(body)
    problems: list[Any] = [{**problem, "loc": ("body", *problem["loc"])} for problem in caught.value.errors()]
    found = describe(problems, body=body, model=Drawing).message
    assert found.startswith(message)
    assert "more field" not in found
