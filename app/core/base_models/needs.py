"""What needs a base model: work that has not ended, aliases, and adapters, which need it to be served."""

from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.core.engine.base_models import DownloadedModel
from app.core.engine.state import EngineState
from app.core.errors.base_models import ModelInUse
from app.core.specs.states import UNFINISHED, AdapterState
from app.core.storage import tables


@dataclass
class Needs:
    """Unfinished work that needs one base model, aliases of it, and how many adapters were trained on it."""

    jobs: list[str] = field(default_factory=list)
    exports: list[str] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    downloads: list[str] = field(default_factory=list)
    evaluations: list[str] = field(default_factory=list)
    aliases: list[str] = field(default_factory=list)
    adapters: int = 0

    @property
    def is_working(self) -> bool:
        """Whether any work that needs the base model has not ended."""
        return bool(self.jobs or self.exports or self.imports or self.downloads or self.evaluations)


def find_needs(session: Session) -> dict[str, Needs]:
    """Returns what needs each base model that anything needs, by the model's name."""
    job, export, adapter = tables.JobRow, tables.ExportRow, tables.AdapterRow
    brought, download = tables.AdapterImportRow, tables.ModelDownloadRow
    queries = {
        "jobs": select(job.base_model, job.id).where(job.state.in_(UNFINISHED)),
        "exports": select(export.base_model, export.id).where(export.state.in_(UNFINISHED)),
        "imports": select(brought.base_model, brought.id).where(brought.state == AdapterState.IMPORTING),
        "downloads": select(download.base_model, download.id).where(download.state.in_(UNFINISHED)),
    }
    found: dict[str, Needs] = {}
    for kind, query in queries.items():
        for name, row_id in session.execute(query):
            getattr(found.setdefault(name, Needs()), kind).append(row_id)
    evaluation = tables.EvaluationRow
    waiting = select(evaluation.id, evaluation.spec).where(evaluation.state.in_(UNFINISHED))
    for evaluation_id, spec in session.execute(waiting):
        for name in {model["base_model"] for model in spec["models"]}:
            found.setdefault(name, Needs()).evaluations.append(evaluation_id)
    for alias, targets in session.execute(select(tables.AliasRow.name, tables.AliasRow.targets)):
        for target in targets:
            if target["adapter"] is None:
                found.setdefault(target["base_model"], Needs()).aliases.append(alias)
    counts = select(adapter.base_model, func.count()).group_by(adapter.base_model)
    for name, count in session.execute(counts):
        found.setdefault(name, Needs()).adapters = count
    return found


def check_unneeded(name: str, needs: Needs | None, states: list[EngineState]) -> None:
    """Raise ModelInUse where an alias, work that has not ended, or an engine needs the base model now."""
    if needs and needs.aliases:
        raise ModelInUse(
            f"The alias {needs.aliases[0]!r} points to the base model {name}.",
            hint=f"Point it elsewhere first: PUT /aliases/{needs.aliases[0]}.",
        )
    if needs and needs.is_working:
        kinds = {"job": needs.jobs, "export": needs.exports, "import": needs.imports}
        kinds["evaluation"] = needs.evaluations
        parts = [_list(kind, ids) for kind, ids in kinds.items() if ids]
        parts += ["a download of it" if needs.downloads else ""]
        raise ModelInUse(
            f"The base model {name} is needed by {' and '.join(part for part in parts if part)}.",
            hint="Wait until it has ended, or cancel it first.",
        )
    engine_uses = _find_uses(states)
    if name in engine_uses:
        raise ModelInUse(
            f"An engine {engine_uses[name]} the base model {name}.",
            hint="It lets go of it when another base model is asked for, or when the worker starts again.",
        )


def find_unneeded(
    found: list[DownloadedModel], needs: dict[str, Needs], states: list[EngineState]
) -> list[DownloadedModel]:
    """Returns those of the downloaded models that no alias, no unfinished work and no engine needs."""
    uses = _find_uses(states)
    working = {name for name, one in needs.items() if one.is_working or one.aliases}
    return [model for model in found if model.name not in uses and model.name not in working]


def _list(kind: str, ids: list[str]) -> str:
    shown = ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")
    return f"{kind} {shown}"


def _find_uses(states: list[EngineState]) -> dict[str, str]:
    """What engines do with base models now, by name: `holds`, `is loading`, `has requests for`."""
    uses = {one.base_model.name: "has requests for" for state in states for one in state.waiting}
    uses |= {state.loading.base_model.name: "is loading" for state in states if state.loading}
    return uses | {base.name: "holds" for state in states for base in state.loaded}
