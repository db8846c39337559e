"""An engine process without a model whose preprocessing is the engine's own: adapters, templates, tokens.

What comes before the first token is measured with it, on a machine without a GPU: every prompt that is ready
gets its first token with the next step.
"""

import sys

import uvloop

from app.core.storage.artifacts import ArtifactStore
from benchmarks.relay_engine import serve
from worker.inference.adapters.cache import AdapterCache
from worker.inference.base_folders import BaseFolders
from worker.inference.general.paths import ServingPaths
from worker.inference.preprocessing import Preprocessor
from worker.inference.service import Prepare
from worker.models.device import find_device
from worker.processes.child import ParentLink
from worker.processes.reports import EngineRequest
from worker.templates.rendering.pool import shared_pool

_CACHE_BYTES = 1 << 30


def make_prepare(request: EngineRequest) -> Prepare:
    """Returns the preprocessing of the engine that this request describes."""
    shared_pool().start()
    adapters = AdapterCache(ArtifactStore(request.artifacts_url), request.cache_folder, _CACHE_BYTES)
    return Preprocessor(BaseFolders(request.models_folder), adapters, find_device(), ServingPaths()).prepare


if __name__ == "__main__":
    uvloop.run(serve(ParentLink(int(sys.argv[1])), make_prepare))
