"""What generates: an engine, and a base model or an adapter that a request names. Knows no HTTP API."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

from sqlalchemy.orm import Session

from app.core.adapters import records as adapter_records
from app.core.adapters.names import is_hub_id
from app.core.aliases import records as alias_records
from app.core.aliases.shares import assign
from app.core.engine import base_models, workers
from app.core.engine.endpoints import EngineEndpoint, as_endpoints, choose_engine
from app.core.engine.messages import AdapterRef, BaseModelRef
from app.core.errors import InvalidRequest
from app.core.errors.adapters import AdapterNotFound
from app.core.settings import Settings
from app.core.specs.job import QuantizationSpec
from app.core.storage import tables


@dataclass(frozen=True)
class Target:
    """What generates: an engine, a base model, and an adapter or None.

    `name` is that of the adapter, or of the base model alone; `alias` the one that the request named, if any.
    """

    engine: EngineEndpoint
    base_model: BaseModelRef
    adapter: AdapterRef | None
    name: str
    alias: str | None = None

    @property
    def key(self) -> str:
        """What stays the same of it: the adapter's id, or the base model's name."""
        return self.adapter.id if self.adapter else self.base_model.name


class Targets:
    """Finds what names stand for, in one state of the database, for any number of requests.

    Nothing is looked at twice: a thousand requests that arrive together name few models.
    """

    def __init__(self, session: Session, settings: Settings, names: Collection[str] = ()) -> None:
        """`names` will be looked for: aliases and adapters of these names are read with one query each."""
        self._session = session
        self._settings = settings
        self._names = names
        self._engines: dict[str, EngineEndpoint] = {}

    def find_named(
        self,
        name: str,
        *,
        quantization: QuantizationSpec | None = None,
        subject: str | None = None,
        served_before: str | None = None,
    ) -> Target:
        """What a name stands for: an alias, else a base model in a models folder, an adapter, a Hub id.

        An alias comes first, so that no folder or adapter that appears later changes what it means. With
        several targets, `subject` and `served_before` decide as `app.core.aliases.shares.assign` says.
        Raises AdapterNotFound, AdapterNotReady, ModelNotAllowed, NoEngine, and InvalidRequest for an
        adapter's quantization.
        """
        alias = self._find_alias(name)
        if alias is not None:
            targets = alias_records.targets_of(alias)
            found = assign(name, targets, subject=subject, served_before=served_before)
            find, wanted = (
                (self.find_adapter, found.adapter) if found.adapter else (self.find_base_model, found.name)
            )
            return replace(find(wanted, quantization=quantization), alias=name)
        if name in self._local_names:
            return self.find_base_model(name, quantization=quantization)
        try:
            return self.find_adapter(name, quantization=quantization)
        except AdapterNotFound:
            if is_hub_id(name):
                return self.find_base_model(name, quantization=quantization)
            raise

    def find_adapter(self, id_or_name: str, *, quantization: QuantizationSpec | None = None) -> Target:
        """An adapter and an engine.

        Raises AdapterNotFound, AdapterNotReady, NoEngine, and InvalidRequest for a quantization.
        """
        row = self._get_adapter(id_or_name)
        base_model, adapter = adapter_records.references(row)
        if quantization not in (None, base_model.quantization):
            raise InvalidRequest(
                f"The adapter {id_or_name!r} was trained on weights of another quantization.",
                param="quantization",
                hint="Leave it out: an adapter is always on the weights that it was trained on.",
            )
        return Target(self._find_engine(base_model), base_model, adapter, row.name)

    def find_base_model(self, name: str, *, quantization: QuantizationSpec | None = None) -> Target:
        """A base model and an engine. Raises ModelNotAllowed, UnknownModel and NoEngine.

        Without a quantization it is that of a job that says none, whatever an engine has loaded: the same
        request has the same answer.
        """
        base_models.check(name, self._settings, () if "/" in name else self._local_names)
        base_model = BaseModelRef(name=name, quantization=quantization or QuantizationSpec())
        return Target(self._find_engine(base_model), base_model, None, name)

    @cached_property
    def _local_names(self) -> list[str]:
        return workers.list_local_names(self._alive, self._settings)

    @cached_property
    def _alive(self) -> list[tables.WorkerRow]:
        return workers.find_alive(self._session, lease_seconds=self._settings.lease_seconds)

    @cached_property
    def _all_engines(self) -> list[EngineEndpoint]:
        return as_endpoints(self._alive)

    def _find_engine(self, base_model: BaseModelRef) -> EngineEndpoint:
        """An engine, with these very weights if there is one."""
        key = base_model.key
        if key not in self._engines:
            self._engines[key] = choose_engine(self._all_engines, base_model.name, base_model.quantization)
        return self._engines[key]

    @cached_property
    def _aliases(self) -> dict[str, tables.AliasRow | None]:
        """The aliases that were looked for, by name; None: there is none of this name."""
        return dict.fromkeys(self._names) | alias_records.find_named(self._session, self._names)

    @cached_property
    def _adapters(self) -> dict[str, tables.AdapterRow]:
        """The adapters that were looked for and found, by id and by name."""
        return adapter_records.find_named(self._session, self._names)

    def _find_alias(self, name: str) -> tables.AliasRow | None:
        if name not in self._aliases:
            self._aliases[name] = alias_records.find(self._session, name)
        return self._aliases[name]

    def _get_adapter(self, id_or_name: str) -> tables.AdapterRow:
        if id_or_name not in self._adapters:
            self._adapters[id_or_name] = adapter_records.get(self._session, id_or_name)
        return self._adapters[id_or_name]
