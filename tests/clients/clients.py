"""The clients, their versions, and which kinds of calls each makes."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
NODE_FOLDER = FOLDER / "node"
COLUMNS = {
    "models": "Models",
    "chat": "Chat",
    "stream": "Stream",
    "structured": "Structured outputs",
    "tools": "Tools",
    "agent": "Agent loop",
    "responses": "Responses",
    "embeddings": "Embeddings",
    "errors": "Errors",
}
"""The kinds of calls, by the first word of their functions in the scripts."""


@dataclass(frozen=True)
class Client:
    """A client and its script in `python/` or `node/`.

    `packages`: the client itself first; of Python with versions, of Node as in package.json.
    `address`: what a user sets so that it speaks to this service.
    """

    name: str
    script: str
    packages: tuple[str, ...]
    address: str
    columns: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        return self.script.endswith(".mjs")

    @property
    def version(self) -> str:
        if self.is_node:
            pinned = json.loads((NODE_FOLDER / "package.json").read_text())["dependencies"]
            return str(pinned[self.packages[0]])
        return self.packages[0].partition("==")[2]

    @property
    def key(self) -> str:
        """Its short name, that of its environment and of its requirements."""
        return self.script.partition("_client")[0] + ("_node" if self.is_node else "")


def _columns(*without: str) -> tuple[str, ...]:
    return tuple(column for column in COLUMNS if column not in without)


CLIENTS = (
    Client(
        name="openai (Python)",
        script="openai_client.py",
        packages=("openai==3.57.0",),
        address="`OpenAI(base_url=…)`",
        columns=_columns(),
    ),
    Client(
        name="openai (Node)",
        script="openai_client.mjs",
        packages=("openai",),
        address="`new OpenAI({ baseURL })`",
        columns=_columns(),
    ),
    Client(
        name="LiteLLM",
        script="litellm_client.py",
        packages=("litellm==1.110.2",),
        address="`openai/<model>`, `api_base`",
        columns=_columns(),
    ),
    Client(
        name="LangChain",
        script="langchain_client.py",
        packages=("langchain-openai==1.7.4", "langchain==1.5.2"),
        address="`ChatOpenAI(base_url=…)`; `OpenAIEmbeddings(…, check_embedding_ctx_length=False)`",
        columns=_columns("models"),
    ),
    Client(
        name="LlamaIndex",
        script="llama_index_client.py",
        packages=(
            "llama-index-core==0.14.25",
            "llama-index-llms-openai-like==0.8.1",
            "llama-index-embeddings-openai-like==0.4.0",
        ),
        address="`OpenAILike(api_base=…, is_chat_model=True, is_function_calling_model=True)`",
        columns=_columns("models", "errors"),
    ),
    Client(
        name="Instructor",
        script="instructor_client.py",
        packages=("instructor==1.17.0",),
        address='`from_provider("openai/<model>", base_url=…)`',
        columns=_columns("models", "agent", "embeddings", "errors"),
    ),
    Client(
        name="PydanticAI",
        script="pydantic_ai_client.py",
        packages=("pydantic-ai-slim[openai]==2.68.0",),
        address="`OpenAIProvider(base_url=…)`",
        columns=_columns("models"),
    ),
    Client(
        name="llm",
        script="llm_client.py",
        packages=("llm==0.36",),
        address="`llm openai endpoint <URL> -m <model>`, or `extra-openai-models.yaml`",
        columns=_columns("embeddings", "errors"),
    ),
    Client(
        name="huggingface_hub",
        script="huggingface_hub_client.py",
        packages=("huggingface-hub==2.4.0",),
        address="`InferenceClient(base_url=…)`",
        columns=_columns("models", "responses", "embeddings", "errors"),
    ),
    Client(
        name="openai-agents",
        script="openai_agents_client.py",
        packages=("openai-agents==0.24.0",),
        address="`set_default_openai_client(AsyncOpenAI(base_url=…))`",
        columns=_columns("models", "tools", "embeddings", "errors"),
    ),
    Client(
        name="Vercel ai",
        script="vercel_ai_client.mjs",
        packages=("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai"),
        address="`createOpenAI({ baseURL })`, `createOpenAICompatible({ baseURL, … })`",
        columns=_columns("models"),
    ),
)
