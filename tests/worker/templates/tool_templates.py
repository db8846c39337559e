"""Chat templates that know functions and that TRL lacks, in short forms with the same calls and results.

After vLLM's examples/tool_chat_template_{hermes,deepseekr1,phi4_mini}.jinja, Mistral-Nemo-Instruct-2407 as
llama.cpp has it (models/templates), and Granite 3's own, which lists functions and writes no calls.
"""

from tests.worker.families import DEEPSEEK
from tests.worker.templates.reasoning_templates import CHATML, PHI_3, TEMPLATES, Published, plain

HERMES = (
    "{{ bos_token }}{% if tools %}{{ 'Here are the available tools: <tools> ' }}{% for tool in tools %}"
    "{{ tool.function | tojson + '\n' }}{% endfor %}{{ ' </tools><|im_end|>' }}{% endif %}"
    "{% for message in messages %}"
    "{% if message.role in ('user', 'system') or (message.role == 'assistant' and message.tool_calls is not "
    "defined) %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% elif message.role == 'assistant' %}{{ '<|im_start|>' + message.role }}"
    "{% for tool_call in message.tool_calls %}{% set tool_call = tool_call.function %}"
    '{{ \'\n<tool_call>\n{ "arguments": \' + tool_call.arguments | tojson + \', "name": "\' }}'
    "{{ tool_call.name + '\"}\n</tool_call> ' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif message.role == 'tool' %}{% if not message.name is defined %}"
    "{{ raise_exception(\"Tool response dicts require a 'name' key\") }}{% endif %}"
    '{{ \'<|im_start|>tool\n<tool_response>\n{"name": "\' + message.name + \'", "content": \' }}'
    "{{ message.content | tojson + '}\n</tool_response> <|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_NEMO = (
    "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% if not tools is defined %}{% set tools = none %}{% endif %}"
    "{% set user_messages = loop_messages | selectattr('role', 'equalto', 'user') | list %}"
    "{% set ns = namespace(index=0) %}{% for message in loop_messages %}"
    "{% if not (message.role == 'tool' or (message.tool_calls is defined and message.tool_calls is not none))"
    " %}{% if (message.role == 'user') != (ns.index % 2 == 0) %}"
    "{{ raise_exception('conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}{% endif %}{% endfor %}"
    "{{ bos_token }}{% for message in loop_messages %}{% if message.role == 'user' %}"
    "{% if tools is not none and message == user_messages[-1] %}"
    "{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% if loop.last and system_message is defined %}"
    "{{ '[INST]' + system_message + '\n\n' + message.content + '[/INST]' }}"
    "{% else %}{{ '[INST]' + message.content + '[/INST]' }}{% endif %}"
    "{% elif message.tool_calls is defined and message.tool_calls is not none %}{{ '[TOOL_CALLS][' }}"
    "{% for tool_call in message.tool_calls %}{% set out = tool_call.function | tojson %}{{ out[:-1] }}"
    "{% if not tool_call.id is defined or tool_call.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ ', \"id\": \"' + tool_call.id + '\"}' }}{{ ', ' if not loop.last else ']' + eos_token }}{% endfor %}"
    "{% elif message.role == 'assistant' %}{{ message.content + eos_token }}"
    "{% elif message.role == 'tool' %}{{ '[TOOL_RESULTS]{\"content\": ' + message.content | string + ', ' }}"
    "{% if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{% endif %}"
    "{{ '\"call_id\": \"' + message.tool_call_id + '\"}[/TOOL_RESULTS]' }}{% endif %}{% endfor %}"
)
PHI_4_MINI = (
    "{{ '<|system|>\nYou are a helpful assistant.\n' }}{% for t in tools or [] %}"
    "{{ t | tojson(indent=4) + '\n\n' }}{% endfor %}{{ '<|end|>' }}"
    "{% for message in messages %}{% if message.role != 'system' %}{{ '\n<|' + message.role + '|>\n' }}"
    "{% if message.content %}{{ message.content }}{% elif message.tool_calls %}"
    "{% for call in message.tool_calls %}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments }}}'
    "{{ ',' if not loop.last else '' }}{% endfor %}{% endif %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n<|assistant|>\n' }}{% endif %}"
)
_TOOL = {
    name: f"<\uff5ctool\u2581{name.replace(' ', chr(0x2581))}\uff5c>"
    for name in (
        *("calls begin", "calls end", "call begin", "call end", "sep"),
        *("outputs begin", "outputs end", "output begin", "output end"),
    )
}
_USER, _ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
_CALL = (
    f"'{_TOOL['call begin']}' + tool.type + '{_TOOL['sep']}' + tool.function.name + '\n```json\n' + "
    f"tool.function.arguments | tojson + '\n```{_TOOL['call end']}'"
)
DEEPSEEK_R1 = (
    "{% set ns = namespace(is_tool=false, is_first=true, is_last_user=false) %}{{ bos_token }}"
    "{% for tool in tools or [] %}{{ '```json\n' + tool | tojson + '\n```\n' }}{% endfor %}"
    "{% for message in messages %}{% set content = message.content %}{% if message.role == 'user' %}"
    f"{{% set ns.is_tool = false %}}{{% set ns.is_last_user = true %}}"
    f"{{{{ '{_USER}' + content + '{_ASSISTANT}' }}}}"
    "{% elif message.role == 'assistant' %}{% set ns.is_last_user = false %}"
    f"{{% if ns.is_tool %}}{{{{ '{_TOOL['outputs end']}' }}}}{{% endif %}}{{% set ns.is_tool = false %}}"
    "{% set content = content.split('</think>')[-1] %}{% if message.tool_calls is defined %}"
    f"{{{{ content + '{_TOOL['calls begin']}' }}}}"
    "{% for tool in message.tool_calls %}{{ '\n' if not loop.first else '' }}{{ "
    + _CALL
    + f" }}}}{{% endfor %}}{{{{ '{_TOOL['calls end']}{DEEPSEEK[1]}' }}}}{{% set ns.is_first = true %}}"
    f"{{% else %}}{{{{ content + '{DEEPSEEK[1]}' }}}}{{% endif %}}"
    "{% elif message.role == 'tool' %}{% set ns.is_last_user = false %}{% set ns.is_tool = true %}"
    f"{{{{ '{_TOOL['outputs begin']}' if ns.is_first else '\n' }}}}{{% set ns.is_first = false %}}"
    f"{{{{ '{_TOOL['output begin']}' + content + '{_TOOL['output end']}' }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if ns.is_tool %}}{{{{ '{_TOOL['outputs end']}' }}}}{{% endif %}}"
    "{% if add_generation_prompt and not ns.is_last_user and not ns.is_tool %}"
    f"{{{{ '{_ASSISTANT}' }}}}{{% endif %}}"
)
GRANITE_3 = (
    "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set system_message = 'You are Granite.' %}"
    "{% set loop_messages = messages %}{% endif %}"
    "{{ '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}"
    "{% if tools %}{{ '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) }}"
    "{{ '<|end_of_text|>\n' }}{% endif %}{% for message in loop_messages %}"
    "{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}"
    "{{ '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
# SmolLM3 lists functions as Python writes them, and writes no calls.
SMOLLM3_TOOLS = (
    "{{ '<|im_start|>system\n' }}{% for tool in tools or [] %}{{ tool | string + '\n' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% for message in messages if message.role != 'system' %}"
    "{% if message.role == 'user' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{% elif message.role == 'assistant' %}{% generation %}"
    "{{ '<|im_start|>assistant\n' + message.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}"
    "{% elif message.role == 'tool' %}{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL_TOKENS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
TOOL_TEMPLATES: dict[str, Published] = {
    "hermes": plain(CHATML, "<|im_end|>", template=HERMES),
    "mistral_nemo": plain(MISTRAL_TOKENS, "</s>", template=MISTRAL_NEMO),
    "phi4_mini": plain((*PHI_3, "<|tool|>", "<|/tool|>"), "<|end|>", template=PHI_4_MINI),
    "deepseek_r1": plain((*DEEPSEEK, *_TOOL.values()), DEEPSEEK[1], template=DEEPSEEK_R1),
    "granite_3": plain(
        ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"), "<|end_of_text|>", template=GRANITE_3
    ),
    "smollm3_tools": plain(CHATML, "<|im_end|>", template=SMOLLM3_TOOLS),
}
ALL_TEMPLATES = {**TEMPLATES, **TOOL_TEMPLATES}
