"""The settings of the API and the worker, read from the environment here and nowhere else.

Secrets may also come from files: `TUNESMITH_API_KEY_FILE=/run/secrets/key` is how containers pass them.
"""

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.core import net
from app.core.errors.webhooks import TargetRefused
from app.core.net import is_webhook_secret
from app.core.origins import parse_host, parse_origin


class GpuPolicy(StrEnum):
    """How training and serving share one GPU."""

    AUTO = "auto"
    COEXIST = "coexist"
    PAUSE_SERVING = "pause_serving"


class EngineWeights(StrEnum):
    """In how many bits the engine holds base models whose adapters were trained on 4-bit weights."""

    AUTO = "auto"
    SIXTEEN_BIT = "16bit"
    FOUR_BIT = "4bit"


class EngineSpeculation(StrEnum):
    """Whether the engine verifies several drafted tokens of an answer in one step."""

    AUTO = "auto"
    OFF = "off"


class EngineKind(StrEnum):
    """What generates: the engine of this project, or an external vLLM."""

    BUILTIN = "builtin"
    VLLM = "vllm"


class TrainingPath(StrEnum):
    """Whether a job trains with Tunesmith's optimizations or with TRL, PEFT and transformers alone."""

    AUTO = "auto"
    PLAIN = "plain"


class Settings(BaseSettings):
    """Settings from the environment, read once at the start of a process and passed on as an argument."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="ignore")

    data_dir: Path = Field(Path("data"), description="Database, artifacts, job folders and logs.")
    database_url: str = Field(
        "",
        description="Any SQLAlchemy URL; PostgreSQL needs the extra `postgres`; default: SQLite in the data "
        "folder.",
    )
    models_dir: Path | None = Field(
        None, description="Folder of base models; default: `models` in the data folder."
    )
    artifacts_url: str = Field(
        "",
        description="fsspec URL of the store of datasets and adapters; `s3://` needs the extra `s3`; "
        "default: `artifacts` in the data folder.",
    )

    store_wait_seconds: float = Field(
        3600.0,
        ge=0,
        description="How long a job or an export waits, with what it has made, for an object store that does "
        "not answer; then it fails with `store_unreachable`.",
    )
    cache_bytes: int = Field(
        100 << 30,
        ge=0,
        description="Size of a worker's copies of what lies in an object store, in bytes; where they would "
        "take more, the least recently used ones are deleted.",
    )

    host: str = Field("127.0.0.1", description="Address the API listens on.")
    published_host: str = Field(
        "",
        description="Address at which others reach the API, where a container's port is published; it "
        "decides whether a key is needed; default: the host.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on.")
    api_key: SecretStr | None = Field(None, description="A key every request must carry.")
    api_key_file: Path | None = Field(None, description="A file that holds the key.")

    allowed_origins: Annotated[list[str], NoDecode] = Field(
        [],
        description="Origins, besides the API's own, whose pages may call the API from a browser, comma "
        "separated: `https://box.example`.",
    )
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        [],
        description="Host names, besides loopback, under which an API without a key may be called, comma "
        "separated.",
    )

    webhook_secret: SecretStr | None = Field(None, description="Signs what is sent to `WEBHOOK_URL`.")
    webhook_secret_file: Path | None = Field(None, description="A file that holds that secret.")
    webhook_url: str = Field("", description="Receives an event when a job ends.")
    webhook_allow_private: bool = Field(
        False, description="Webhooks may go to loopback, private and link-local networks."
    )

    max_connections: int = Field(
        4096,
        ge=16,
        description="Connections to the API at the same time, as far as the process may open files; where "
        "there would be more, the oldest idle one is closed.",
    )
    max_connections_per_address: int = Field(
        2048,
        ge=1,
        description="Connections of one client address (IPv6: of one /64 network). Behind a reverse proxy "
        "they all come from its address.",
    )
    max_header_bytes: int = Field(
        32_768, ge=1024, le=1 << 20, description="Largest request line and headers, together, in bytes."
    )
    request_seconds: float = Field(
        20.0,
        gt=0,
        description="How long a client may take to send a request's headers, and after them its body; a body "
        "may take longer as long as it arrives at `MIN_BODY_BYTES_PER_SECOND`.",
    )
    min_body_bytes_per_second: int = Field(
        1024, ge=1, description="The slowest that a long request body may arrive, on average."
    )

    max_upload_bytes: int = Field(1 << 30, gt=0, description="Largest upload, in bytes.")
    max_body_bytes: int = Field(4 << 20, gt=0, description="Largest other request body, in bytes.")
    max_dataset_rows: int = Field(1_000_000, gt=0, description="Most rows in one dataset.")
    max_row_bytes: int = Field(16 << 20, gt=0, description="Largest row of a dataset, in bytes.")
    max_unpacked_bytes: int = Field(8 << 30, gt=0, description="Most that an upload may unpack to, in bytes.")
    max_queued_jobs: int = Field(1000, gt=0, description="Jobs that may wait; one more is refused with 429.")

    allowed_models: Annotated[list[str], NoDecode] = Field(
        [], description="Base models that may be named, comma separated; empty: any."
    )
    gpu_policy: GpuPolicy = Field(
        GpuPolicy.AUTO,
        description="`coexist`: training and serving share the device; `pause_serving`: serving pauses while "
        "a job trains; `auto`: they share a CPU, and a GPU where the job's estimate fits into what serving "
        "leaves free.",
    )
    serve_gpus: int = Field(
        0,
        ge=0,
        description="GPUs of a host, the first ones, that only serve, with an engine each; jobs train on the "
        "others. 0: the first one serves, jobs prefer the others, and the GPU policy says how they share it.",
    )
    response_hours: float = Field(
        24.0,
        ge=0,
        le=24 * 365,
        description="How long a response of `/v1/responses` is stored, to be shown and continued; one that "
        "is continued stays as long as the last that continues it. 0: none is stored.",
    )
    judge_url: str = Field(
        "",
        description="An OpenAI-compatible endpoint, such as `https://api.openai.com/v1`, whose models grade "
        "answers; empty: only models of this server do.",
    )
    judge_api_key: SecretStr | None = Field(None, description="The key of that endpoint.")
    judge_api_key_file: Path | None = Field(None, description="A file that holds that key.")
    judge_seconds: float = Field(
        120.0, gt=0, description="How long an answer of that endpoint may take before it is asked again."
    )
    allow_python_graders: bool = Field(
        False,
        description="Whether graders of type `python` run: code of whoever may use the API, in processes "
        "without network, files or other processes. It needs Linux.",
    )
    python_grader_seconds: float = Field(
        30.0, gt=0, le=3600, description="How long a Python grader may take for one answer."
    )
    python_grader_bytes: int = Field(
        2 << 30, ge=256 << 20, description="How much memory the process of a Python grader may have."
    )
    keep_checkpoints_days: float = Field(
        90.0,
        ge=0,
        description="Checkpoints of a job that has ended are deleted after so many days; a retry begins anew "
        "then. 0: never.",
    )
    keep_tensorboard_days: float = Field(0.0, ge=0, description="The same for TensorBoard files. 0: never.")
    keep_logs_days: float = Field(0.0, ge=0, description="The same for the log files of attempts. 0: never.")
    keep_events_days: float = Field(
        0.0, ge=0, description="The same for events: log lines and curves. 0: never."
    )
    keep_exports_days: float = Field(
        0.0, ge=0, description="Exports that have ended are deleted after so many days. 0: never."
    )
    keep_evaluations_days: float = Field(
        0.0,
        ge=0,
        description="Evaluations that have ended are deleted after so many days, with their answers. 0: "
        "never.",
    )
    keep_base_models_days: float = Field(
        0.0,
        ge=0,
        description="Base models downloaded from the Hub are deleted after so many days without use, unless "
        "something needs them; the Hub's cache belongs to all programs of the worker's user. 0: never.",
    )
    lease_seconds: float = Field(30.0, gt=0, description="A worker that is silent for so long loses its job.")
    max_lost_attempts: int = Field(
        3, ge=1, description="A job whose worker or training process died so often fails."
    )
    training_path: TrainingPath = Field(
        TrainingPath.AUTO,
        description="`auto`: every faster way of computing the same that applies and passes a trial at the "
        "job's start; `plain`: TRL, PEFT and transformers as they are.",
    )
    training_standby: bool = Field(
        True,
        description="Keep processes ready that have imported everything: one for the next job, which starts "
        "5 to 7 s sooner, for about 0.6 GB of main memory, and one for preflights, of which the first then "
        "takes no longer than others, for about 0.7 GB.",
    )
    cpu_ranks: int = Field(
        1,
        ge=1,
        description="On a worker without a GPU: how many `resources.gpus` a job may ask for; each is a "
        "process on the CPU. To try out jobs over several GPUs.",
    )
    ray_address: str = Field(
        "",
        description="Address of the Ray cluster, `host:port`, on which this worker runs jobs with "
        "`resources.nodes` above 1; the worker's host is one of its nodes. Needs the extra `ray`.",
    )
    llm_compressor_python: Path | None = Field(
        None,
        description="The Python interpreter of the environment that has llm-compressor, for exports as `awq` "
        "and `gptq`: `/opt/llm-compressor/bin/python`; default: the worker's own.",
    )
    require_gpu: bool = Field(False, description="A worker without a GPU is not ready.")
    cancel_grace_seconds: float = Field(
        10.0,
        ge=0,
        description="How long a step, then the copy of its checkpoint to the store, may take after a cancel.",
    )
    shutdown_grace_seconds: float = Field(
        90.0,
        ge=0,
        description="How long a step, then the copy of its checkpoint to the store, may take after SIGTERM.",
    )
    tracker_end_seconds: float = Field(
        60.0,
        ge=0,
        le=3600,
        description="How long a tracker (W&B, MLflow, trackio) may take for what is left after a job's end. "
        "The job itself, and the next one, never wait for it.",
    )

    engine: EngineKind = Field(
        EngineKind.BUILTIN,
        description="`builtin`; or `vllm`: a worker that serves has the vLLM at `VLLM_URL` generate, which "
        "loads adapters at run time.",
    )
    vllm_url: str = Field("", description="URL of that vLLM, such as `http://gpu-2:8000`.")
    vllm_api_key: SecretStr | None = Field(None, description="The key of that vLLM (its `--api-key`).")
    vllm_api_key_file: Path | None = Field(None, description="A file that holds that key.")
    vllm_adapters_dir: Path | None = Field(
        None,
        description="A folder that the worker and vLLM have at the same path; adapters are copied there. "
        "Default: vLLM reads them in the artifact store, where that is a folder.",
    )
    engine_host: str = Field("127.0.0.1", description="Address the engine listens on.")
    engine_port: int = Field(0, ge=0, le=65535, description="Port of the engine; 0: a free one.")
    engine_url: str = Field(
        "", description="URL by which the API reaches the engine; default: the engine's own address."
    )
    engine_max_rows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Answers generated at the same time on one base model; default: 128 on a GPU, 32 "
        "on a CPU.",
    )
    engine_adapter_slots: int = Field(
        8, ge=1, le=256, description="Adapters on the device at the same time, for each base model."
    )
    engine_cache_share: float | None = Field(
        None,
        gt=0,
        le=0.95,
        description="Share of the memory that the base model leaves free that is for the KV caches; default: "
        "0.5 on a GPU, 0.25 on a CPU.",
    )
    engine_max_waiting: int = Field(
        256, ge=1, description="Requests that may wait for the engine; one more is refused with 429."
    )
    engine_max_base_models: int = Field(
        1,
        ge=1,
        le=16,
        description="Base models loaded at the same time, as far as memory allows; a request for another one "
        "waits until the least recently used is idle.",
    )
    evaluation_requests: int = Field(
        16,
        ge=1,
        le=256,
        description="Requests of an evaluation to the engine at the same time, which are one batch there.",
    )
    engine_switch_wait_seconds: float = Field(
        600.0,
        gt=0,
        description="How long a request may wait for a base model that is not loaded; then 503 with "
        "`Retry-After`.",
    )
    engine_stall_seconds: float = Field(
        30.0,
        gt=0,
        description="An engine that has not moved for so long is killed and started again. What may take "
        "longer, as loading a model, is not counted.",
    )
    engine_silent_seconds: float = Field(
        10.0,
        gt=0,
        description="An engine that responds to no probe for so long, as when its process was stopped, is "
        "killed and started again; while it loads a base model, after 300 s.",
    )
    engine_weights: EngineWeights = Field(
        EngineWeights.AUTO,
        description="How the engine holds a base model whose adapters were trained on 4-bit weights: `16bit` "
        "(dequantized once: fast), `4bit` (small), or `auto`: 16 bits where that takes at most 60% of the "
        "free GPU memory.",
    )
    engine_speculation: EngineSpeculation = Field(
        EngineSpeculation.AUTO,
        description="`auto`: where an answer repeats its prompt or itself, the engine computes several "
        "tokens in a step, as far as its own measurements say that this is faster; the answers stay the "
        "same. `off`: one token a step.",
    )

    @field_validator("allowed_models", "allowed_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("allowed_origins")
    @classmethod
    def _read_origins(cls, value: list[str]) -> list[str]:
        return [parse_origin(origin) for origin in value]

    @field_validator("allowed_hosts")
    @classmethod
    def _read_hosts(cls, value: list[str]) -> list[str]:
        return [parse_host(host) for host in value]

    @field_validator("webhook_secret")
    @classmethod
    def _check_webhook_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value and value.get_secret_value() and not is_webhook_secret(value.get_secret_value()):
            raise ValueError("what follows `whsec_` must be base64")
        return value if value and value.get_secret_value() else None

    @field_validator("judge_url")
    @classmethod
    def _check_judge_url(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, value: str, found: ValidationInfo) -> str:
        if value:
            try:
                net.parse_webhook_url(value)
            except TargetRefused as error:
                raise ValueError(error.message) from None
            if not (found.data.get("webhook_secret") or found.data.get("webhook_secret_file")):
                raise ValueError("set TUNESMITH_WEBHOOK_SECRET too: it signs what is sent")
        return value

    @field_validator("api_key", "judge_api_key", "vllm_api_key")
    @classmethod
    def _empty_key_is_none(cls, value: SecretStr | None) -> SecretStr | None:
        return value if value and value.get_secret_value() else None

    @model_validator(mode="after")
    def _fill_defaults(self) -> "Settings":
        if self.engine is EngineKind.VLLM and not self.vllm_url.startswith(("http://", "https://")):
            raise ValueError("set TUNESMITH_VLLM_URL to the http:// or https:// address of vLLM")
        self.data_dir = self.data_dir.expanduser().absolute()
        self.models_dir = (self.models_dir or self.data_dir / "models").expanduser().absolute()
        self.database_url = self.database_url or f"sqlite:///{self.data_dir / 'tunesmith.db'}"
        self.published_host = self.published_host or self.host
        self.artifacts_url = self.artifacts_url or str(self.data_dir / "artifacts")
        if self.api_key_file and not self.api_key:
            self.api_key = SecretStr(self.api_key_file.read_text().strip()) or None
        if self.webhook_secret_file and not self.webhook_secret:
            self.webhook_secret = SecretStr(self.webhook_secret_file.read_text().strip())
        if self.judge_api_key_file and not self.judge_api_key:
            self.judge_api_key = SecretStr(self.judge_api_key_file.read_text().strip())
        if self.vllm_api_key_file and not self.vllm_api_key:
            self.vllm_api_key = SecretStr(self.vllm_api_key_file.read_text().strip()) or None
        return self

    @property
    def models_folder(self) -> Path:
        """The folder of base models; the default is filled in."""
        assert self.models_dir is not None
        return self.models_dir

    @property
    def cache_folder(self) -> Path:
        """Copies of what is elsewhere: of artifacts, of base models' descriptions, of compiled kernels."""
        return self.data_dir / "cache"

    def job_folder(self, job_id: str) -> Path:
        """Returns the worker's folder for one job: checkpoints, logs, TensorBoard files."""
        return self.data_dir / "jobs" / job_id


class RankSettings(BaseSettings):
    """What a rank on a node of a Ray cluster reads from the environment of that node."""

    model_config = SettingsConfigDict(env_prefix="TUNESMITH_", extra="ignore")

    # The job's files while it trains.
    data_dir: Path = Path(tempfile.gettempdir()) / "tunesmith"
    # None: as on the worker's host.
    models_dir: Path | None = None
