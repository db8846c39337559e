"""What the routes of base models return. Knows no database session."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.schemas import Page
from app.core.base_models.messages import HubModel
from app.core.base_models.needs import Needs
from app.core.engine.serving import Serving
from app.core.specs.patterns import HUB_NAME
from app.core.specs.states import DownloadState
from app.core.storage import tables

State = Literal["loaded", "loading", "on_disk", "on_hub"]


class BaseModelNeedsRead(BaseModel):
    """What needs a base model."""

    jobs: list[str] = Field(description="Ids of jobs that have not ended.")
    exports: list[str] = Field(description="Ids of exports that have not ended.")
    imports: list[str] = Field(description="Ids of imports of adapters that have not ended.")
    downloads: list[str] = Field(description="Ids of downloads of it that have not ended.")
    adapters: int = Field(description="Adapters that were trained on it: they are served on it alone.")

    @classmethod
    def from_needs(cls, needs: Needs) -> "BaseModelNeedsRead":
        """The needs as the API shows them."""
        return cls(
            jobs=needs.jobs,
            exports=needs.exports,
            imports=needs.imports,
            downloads=needs.downloads,
            adapters=needs.adapters,
        )


class BaseModelRead(BaseModel):
    """A base model that may be named."""

    name: str = Field(description="`base_model` takes it.", examples=["SmolLM2-135M-Instruct"])
    source: Literal["local", "hub"] = Field(
        description="`local`: in the models folder. `hub`: the worker downloads it when it is first needed."
    )
    architecture: str | None = Field(None, description="Its class in transformers, from `config.json`.")
    context_length: int | None = Field(None, description="Most tokens of prompt and answer together.")
    size_bytes: int | None = Field(None, description="Size of the files on disk.")
    loaded: bool = Field(description="Whether an engine holds it now, so that it answers at once.")
    state: State = Field(
        description="`loaded`: it answers at once. `loading`: an engine is loading it, and requests wait. "
        "`on_disk`: the first request loads it, which may wait until another base model is not needed. "
        "`on_hub`: the same, and it has to be downloaded first, or the rest of it."
    )
    used_at: datetime | None = Field(
        None, description="Of a downloaded one: when its weights were last read, or arrived; to about a day."
    )
    needed_by: BaseModelNeedsRead = Field(description="What needs it.")
    serving: Serving | None = Field(
        None, description="How the engine serves it without an adapter; null: not known before it is loaded."
    )
    waiting: int = Field(0, description="Requests that wait for it, as of the worker's last word.")


class BaseModelPage(Page[BaseModelRead]):
    """The base models that may be named."""

    any_hub_model: bool = Field(description="Whether any other Hub id may be named too: no allow-list.")


class HubModelRead(HubModel):
    """A model of the Hub, and whether it is here."""

    downloaded: bool = Field(description="Whether all of it is on a worker's machine.")


class HubSearchRead(BaseModel):
    """What a search on the Hub found, or why the Hub could not be asked."""

    state: Literal["ok", "offline", "unreachable", "refused", "no_engine"] = Field(
        description="`ok`: the Hub was asked. `offline`: `HF_HUB_OFFLINE` is set for the worker. "
        "`unreachable`: the Hub does not answer. `refused`: it declined, as for a token that is wrong. "
        "`no_engine`: no worker that serves runs, and the worker asks."
    )
    message: str | None = Field(description="Why it was not asked, for a person; null: it was.")
    data: list[HubModelRead] = Field(description="Models that may be named, the most downloaded first.")


class DeletedModelRead(BaseModel):
    """A base model that was deleted from the disk."""

    name: str = Field(description="Its name.")
    size_bytes: int = Field(description="Size of its files.")
    adapters: int = Field(description="Adapters that need it: it is downloaded again for the next request.")


class NewDownload(BaseModel):
    """A base model to download."""

    model_config = ConfigDict(extra="forbid")

    base_model: Annotated[str, Field(pattern=HUB_NAME, max_length=200)] = Field(
        description="Its Hub id.", examples=["HuggingFaceTB/SmolLM2-135M-Instruct"]
    )


class DownloadErrorRead(BaseModel):
    """Why a download failed."""

    code: str = Field(description="A stable word for programs.", examples=["model_gated"])
    message: str = Field(description="What happened, for a person.")
    hint: str | None = Field(description="What to do next.")


class DownloadRead(BaseModel):
    """A download of a base model."""

    id: str = Field(description="Names the download.", examples=["dl_4kq1v9x2m7ahc3zt"])
    base_model: str = Field(description="What is downloaded.")
    state: DownloadState = Field(
        description="`queued`: a worker that trains takes it. `running`, and then `succeeded`, `failed` or "
        "`cancelled`."
    )
    done_bytes: int = Field(description="So much of it is on the disk.")
    total_bytes: int | None = Field(description="Size of its files; null: not known yet.")
    error: DownloadErrorRead | None = Field(description="Why it failed.")
    created_at: datetime = Field(description="When it was asked for.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def from_row(cls, row: tables.ModelDownloadRow) -> "DownloadRead":
        """The download as the API shows it."""
        return cls(
            id=row.id,
            base_model=row.base_model,
            state=DownloadState(row.state),
            done_bytes=row.done_bytes,
            total_bytes=row.total_bytes,
            error=DownloadErrorRead.model_validate(row.error) if row.error else None,
            created_at=row.created_at,
            finished_at=row.finished_at,
        )
