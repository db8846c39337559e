"""Properties of every combination of the compose files, and of the Dockerfiles."""

import json
import re
import subprocess
from itertools import chain, combinations
from typing import Any

import pytest

from app.core.settings import Settings

from .engine import FOLDER, Compose

OVERRIDES = ("cpu", "postgres", "confined")
COMBINATIONS = list(chain.from_iterable(combinations(OVERRIDES, count) for count in range(4)))
DOCKERFILES = sorted(FOLDER.glob("*.Dockerfile"))


def merged(*overrides: str, **environment: str) -> dict[str, Any]:
    environment = {"POSTGRES_PASSWORD": "secret", **environment}
    return Compose("tunesmith", *overrides, **environment).configuration()


def seconds(duration: str) -> int:
    parts = re.findall(r"(\d+)([hms])", duration)
    return sum(int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in parts)


@pytest.fixture(params=COMBINATIONS, ids=lambda overrides: "+".join(overrides) or "alone")
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = merged(*request.param)["services"]
    return found


def test_every_service_restarts_tells_its_health_and_rotates_its_log(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["restart"] == "unless-stopped"
        assert service["healthcheck"]["test"]
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}
        assert "no-new-privileges:true" in service["security_opt"]


def test_the_api_is_read_only_and_without_capabilities(services: dict[str, Any]) -> None:
    assert services["api"]["read_only"]
    assert services["api"]["cap_drop"] == services["worker"]["cap_drop"] == ["ALL"]
    mounts = {mount["target"]: mount.get("read_only", False) for mount in services["api"]["volumes"]}
    assert mounts == {"/data": False, "/models": True}


def test_the_worker_waits_for_the_api_that_migrates(services: dict[str, Any]) -> None:
    assert services["worker"]["depends_on"]["api"]["condition"] == "service_healthy"


def test_a_training_step_may_finish_before_the_worker_is_killed(services: dict[str, Any]) -> None:
    grace = Settings.model_fields["shutdown_grace_seconds"].default
    assert seconds(services["worker"]["stop_grace_period"]) > grace + 10
    assert services["worker"]["init"]


def test_training_gets_shared_and_locked_memory() -> None:
    worker = merged("cpu", "postgres")["services"]["worker"]
    assert int(worker["shm_size"]) >= 1 << 30
    assert worker["ulimits"]["memlock"] == -1


def test_both_share_the_data_and_the_models(services: dict[str, Any]) -> None:
    sources = [
        {mount["target"]: mount["source"] for mount in services[name]["volumes"]}
        for name in ("api", "worker")
    ]
    assert sources == [{"/data": "data", "/models": "models"}] * 2


def test_all_gpus_are_reserved_where_none_is_named() -> None:
    worker = merged()["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device["device_ids"] == ["all"]


@pytest.mark.parametrize("overrides", [c for c in COMBINATIONS if "cpu" not in c], ids="+".join)
def test_a_gpu_is_reserved_and_required(overrides: tuple[str, ...]) -> None:
    worker = merged(*overrides, TUNESMITH_GPU="1")["services"]["worker"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["device_ids"], device["capabilities"]) == ("nvidia", ["1"], ["gpu"])
    assert worker["environment"]["TUNESMITH_REQUIRE_GPU"] == "true"
    assert worker["build"]["args"]["TORCH_VARIANT"] == "cuda"


@pytest.mark.parametrize("overrides", [c for c in COMBINATIONS if "cpu" in c], ids="+".join)
def test_the_cpu_file_takes_the_gpu_away(overrides: tuple[str, ...]) -> None:
    worker = merged(*overrides)["services"]["worker"]
    assert "deploy" not in worker
    assert worker["environment"]["TUNESMITH_REQUIRE_GPU"] == "false"
    assert worker["build"]["args"]["TORCH_VARIANT"] == "cpu"
    assert worker["image"].startswith("tunesmith-worker-cpu:")


def test_the_port_is_published_on_the_loopback_alone() -> None:
    api = merged()["services"]["api"]
    assert [(port["host_ip"], port["published"]) for port in api["ports"]] == [("127.0.0.1", "8000")]


def test_whom_the_port_lets_in_is_what_the_api_is_told() -> None:
    api = merged(TUNESMITH_HOST="0.0.0.0", TUNESMITH_PORT="9000")["services"]["api"]
    (port,) = api["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("0.0.0.0", "9000", 8000)
    assert api["environment"]["TUNESMITH_PUBLISHED_HOST"] == "0.0.0.0"
    assert api["environment"]["TUNESMITH_PORT"] == "8000"


def test_on_a_confined_engine_nothing_listens_beyond_the_loopback() -> None:
    services = merged("cpu", "confined", TUNESMITH_HOST="0.0.0.0")["services"]
    assert services["api"]["environment"]["TUNESMITH_HOST"] == "127.0.0.1"
    assert services["worker"]["environment"]["TUNESMITH_ENGINE_HOST"] == "127.0.0.1"
    assert "ports" not in services["api"]


def test_secrets_come_from_files_and_never_reach_a_build() -> None:
    found = merged(
        TUNESMITH_API_KEY="key", HF_TOKEN="token", TUNESMITH_API_KEY_FILE="/a/key", HF_TOKEN_FILE="/a/token"
    )
    files = {name: secret["file"] for name, secret in found["secrets"].items()}
    assert (files["api_key"], files["hf_token"]) == ("/a/key", "/a/token")
    for service in found["services"].values():
        assert not {"key", "token"} & set(service["build"].get("args", {}).values())
        assert [secret["source"] for secret in service["build"]["secrets"]] == ["pip_conf"]
    mounted = [
        {secret["source"] for secret in found["services"][name]["secrets"]} for name in ("api", "worker")
    ]
    assert mounted == [{"api_key"}, {"api_key", "hf_token"}]


def test_without_secrets_the_mounted_files_are_empty() -> None:
    assert (FOLDER / "no-secret").read_bytes() == b""


def test_postgresql_takes_the_place_of_sqlite() -> None:
    services = merged("postgres", POSTGRES_PASSWORD="hunter2")["services"]
    for name in ("api", "worker"):
        assert services[name]["environment"]["TUNESMITH_DATABASE_URL"].startswith("postgresql+psycopg://")
        assert services[name]["environment"]["PGPASSWORD"] == "hunter2"
    assert services["api"]["depends_on"]["database"]["condition"] == "service_healthy"
    assert "ports" not in services["database"]


def test_postgresql_without_a_password_is_refused() -> None:
    ended = Compose("tunesmith", "postgres", POSTGRES_PASSWORD="").run("config", "--quiet", check=False)
    assert ended.returncode != 0
    assert b"set POSTGRES_PASSWORD" in ended.stderr


HOST = {
    "TUNESMITH_DATABASE_URL": "postgresql+psycopg://tunesmith@10.0.0.1/tunesmith",
    "TUNESMITH_ARTIFACTS_URL": "s3://tunesmith/artifacts",
    "TUNESMITH_HOST_ADDRESS": "10.0.0.2",
    "TUNESMITH_GPUS": "0,1",
}
RAY_NODE = {
    "TUNESMITH_RAY_ADDRESS": "10.0.0.1:6379",
    "TUNESMITH_RAY_START": "--address=10.0.0.1:6379",
    "TUNESMITH_RAY_GPUS": "2,3",
    "RAY_AUTH_TOKEN": "token",
}
SHARED = {
    "TUNESMITH_SHARED_ADDRESS": "10.0.0.1",
    "POSTGRES_PASSWORD": "secret",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


@pytest.mark.parametrize("overrides", [("hosts",), ("hosts", "ray")], ids="+".join)
def test_services_of_one_of_several_hosts_keep_what_holds_for_one(overrides: tuple[str, ...]) -> None:
    services = merged(*overrides, **HOST, **RAY_NODE)["services"]
    test_every_service_restarts_tells_its_health_and_rotates_its_log(services)
    test_the_api_is_read_only_and_without_capabilities(services)
    test_a_training_step_may_finish_before_the_worker_is_killed(services)
    test_the_worker_waits_for_the_api_that_migrates(services)


def test_the_engines_of_a_host_are_reached_on_its_network() -> None:
    worker = merged("hosts", **HOST)["services"]["worker"]
    assert worker["network_mode"] == "host"
    assert worker["environment"]["TUNESMITH_ENGINE_HOST"] == "10.0.0.2"
    assert worker["environment"]["TUNESMITH_ENGINE_PORT"] == "8100"
    assert worker["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    (devices,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (devices["count"], devices["capabilities"]) == (-1, ["gpu"])


def test_all_of_a_host_use_the_shared_database_and_store() -> None:
    services = merged("hosts", **HOST)["services"]
    for name in ("api", "worker"):
        assert services[name]["environment"]["TUNESMITH_DATABASE_URL"] == HOST["TUNESMITH_DATABASE_URL"]
        assert services[name]["environment"]["TUNESMITH_ARTIFACTS_URL"] == HOST["TUNESMITH_ARTIFACTS_URL"]
        assert services[name]["environment"]["PGPASSWORD"] == "secret"


@pytest.mark.parametrize("missing", HOST)
def test_a_host_without_a_setting_is_refused(missing: str) -> None:
    ended = Compose("tunesmith", "hosts", **{**HOST, "POSTGRES_PASSWORD": "secret", missing: ""}).run(
        "config", "--quiet", check=False
    )
    assert ended.returncode != 0
    assert f"set {missing}".encode() in ended.stderr


def test_a_node_of_the_cluster_has_gpus_that_the_worker_has_not() -> None:
    services = merged("hosts", "ray", **HOST, **RAY_NODE)["services"]
    worker, node = services["worker"], services["ray"]
    assert (worker["environment"]["CUDA_VISIBLE_DEVICES"], node["environment"]["CUDA_VISIBLE_DEVICES"]) == (
        "0,1",
        "2,3",
    )
    assert worker["image"] == node["image"] == "tunesmith-worker-ray:latest"
    assert worker["build"]["args"]["EXTRAS"] == node["build"]["args"]["EXTRAS"] == "ray"
    assert node["network_mode"] == "host"
    assert node["environment"]["RAY_AUTH_MODE"] == worker["environment"]["RAY_AUTH_MODE"] == "token"
    assert node["environment"]["NODE_START"] == "--address=10.0.0.1:6379"
    # The worker's driver finds the node among the processes, and its sockets in the data folder.
    assert worker["pid"] == node["pid"] == "host"
    assert "--temp-dir=/data/ray" in node["command"][-1]
    sources = [
        {mount["source"] for mount in one["volumes"] if mount["target"] == "/data"} for one in (worker, node)
    ]
    assert sources[0] == sources[1]


def test_what_hosts_share_is_published_on_their_network_alone() -> None:
    services = Compose("tunesmith-shared", base="compose.shared", **SHARED).configuration()["services"]
    assert set(services) == {"database", "store"}
    test_every_service_restarts_tells_its_health_and_rotates_its_log(services)
    ports = [port for service in services.values() for port in service["ports"]]
    assert [(port["host_ip"], port["published"]) for port in ports] == [
        ("10.0.0.1", "5432"),
        ("10.0.0.1", "8333"),
    ]


def test_the_keys_of_the_store_are_those_of_the_hosts() -> None:
    found = Compose("tunesmith-shared", base="compose.shared", **SHARED).configuration()
    (identity,) = json.loads(found["configs"]["s3"]["content"])["identities"]
    assert identity["credentials"] == [{"accessKey": "key", "secretKey": "secret"}]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Any) -> None:
    ended = subprocess.run(["hadolint", str(path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_needs_no_frontend_image_and_ends_without_root(path: Any) -> None:
    text = path.read_text()
    assert not re.search(r"^# *syntax|<<|--link|--chmod", text, re.MULTILINE)
    assert text.count("\nFROM ") > 1
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["1000:1000"]
    # Code after packages: a change of it rebuilds only what comes later.
    assert text.index("COPY app ") > text.index("COPY --from=packages")
