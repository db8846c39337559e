"""Turns the body of a request into a plan: finds the model, the conversation, and the items referred to."""

from anyio import to_thread
from sqlalchemy.orm import Session

from app.api.deps import Services
from app.api.openai.models import find_target
from app.api.openai.parameters import reject_parameter
from app.api.openai.responses.body import ResponseBody
from app.api.openai.responses.history import as_turns
from app.api.openai.responses.items import Item, ItemReference, MessageItem, item_adapter, with_ids
from app.api.openai.responses.plan import ResponsePlan
from app.api.openai.responses.tools import tools_of
from app.core.adapters.targets import Target
from app.core.chat import responses as stored_responses
from app.core.chat.responses import StoredConversation
from app.core.engine.messages import GenerateRequest, Tools
from app.core.storage.ids import new_id


async def make_plan(services: Services, body: ResponseBody) -> ResponsePlan:
    """Find the model and the conversation. Raises InvalidRequest, and what finding either raises."""
    is_stored = body.store is not False and services.settings.response_hours > 0
    _check(body, is_stored)
    tools = tools_of(body.tools, body.tool_choice, is_parallel=body.parallel_tool_calls is not False)
    earlier, sent = await to_thread.run_sync(_find_items, services, body)
    target = await find_target(
        services,
        body.model,
        body.quantization,
        subject=body.subject,
        served_before=earlier.served_by,
    )
    return await to_thread.run_sync(_complete_plan, body, target, tools, earlier, sent, is_stored)


def _find_items(services: Services, body: ResponseBody) -> tuple[StoredConversation, list[Item]]:
    with services.database.snapshot() as session:
        earlier = _find_earlier(session, body, max_bytes=services.settings.max_body_bytes)
        return earlier, _sent_items(session, body)


def _complete_plan(
    body: ResponseBody,
    target: Target,
    tools: Tools | None,
    earlier: StoredConversation,
    sent: list[Item],
    is_stored: bool,
) -> ResponsePlan:
    response_id = new_id(stored_responses.PREFIX)
    sent = with_ids(sent, lambda prefix, number: stored_responses.item_id(prefix, response_id, number))
    items = [*map(item_adapter.validate_python, earlier.items), *sent]
    request = GenerateRequest(
        base_model=target.base_model,
        adapter=target.adapter,
        messages=as_turns(body.instructions, items, sent_count=len(sent)),
        sampling=body.engine_sampling,
        output_schema=body.output_schema,
        tools=tools,
        template_variables=body.template_variables,
    )
    return ResponsePlan(
        body=body,
        target=target,
        request=request,
        input_items=sent,
        earlier_bytes=earlier.size_bytes,
        is_stored=is_stored,
        id=response_id,
    )


def _check(body: ResponseBody, is_stored: bool) -> None:
    """Raise InvalidRequest for parameters that do not go together."""
    if body.background and body.stream:
        reject_parameter("background", "not supported together with `stream`; GET shows the response")
    if body.background and not is_stored:
        reject_parameter("background", "it needs a response that is stored: leave `store` out")


def _find_earlier(session: Session, body: ResponseBody, *, max_bytes: int) -> StoredConversation:
    if body.previous_response_id is None:
        return StoredConversation([], 0)
    return stored_responses.find_conversation(session, body.previous_response_id, max_bytes=max_bytes)


def _sent_items(session: Session, body: ResponseBody) -> list[Item]:
    """The items of the request, with those of stored responses in the place of references to them."""
    if isinstance(body.input, str):
        return [MessageItem(role="user", content=body.input)]
    return [
        _find_referred(session, item, f"input.{index}.id") if isinstance(item, ItemReference) else item
        for index, item in enumerate(body.input)
    ]


def _find_referred(session: Session, reference: ItemReference, param: str) -> Item:
    found = stored_responses.find_item(session, reference.id)
    if found is None:
        reject_parameter(
            param,
            f"there is no stored item {reference.id!r}: its response may have been deleted, have expired, or "
            "been made with `store: false`; send the item itself",
        )
    return item_adapter.validate_python(found)
