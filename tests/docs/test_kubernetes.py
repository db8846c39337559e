"""The manifests of the Kubernetes example against schemas of Kubernetes and of KubeRay; nothing is run."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

from app.core.settings import Settings
from worker.supervisor import Role

FOLDER = Path(__file__).parents[2] / "docker" / "kubernetes"
SCHEMA = json.loads((Path(__file__).parent / "raycluster_spec.json").read_text())
RAY = "ray.io/v1"
# An old and a new version of Kubernetes that are supported by their makers or by clouds.
VERSIONS = ("1.31", "1.37")


def read_manifests() -> list[dict[str, Any]]:
    return [
        manifest for path in sorted(FOLDER.glob("*.yaml")) for manifest in YAML(typ="safe").load_all(path)
    ]


MANIFESTS = read_manifests()
CLUSTERS = [one for one in MANIFESTS if one["apiVersion"] == RAY]
OTHERS = [one for one in MANIFESTS if one["apiVersion"] != RAY]


def name_of(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


def find_pods() -> list[tuple[str, dict[str, Any]]]:
    """The templates of all pods, with the names of what makes them."""
    pods = [(name_of(one), one["spec"]["template"]) for one in OTHERS if one["kind"] == "Deployment"]
    for cluster in CLUSTERS:
        spec = cluster["spec"]
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pods.append((f"{name_of(cluster)}-{group.get('groupName', 'head')}", group["template"]))
    return pods


PODS = find_pods()


def check(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("manifest", OTHERS, ids=name_of)
def test_a_manifest_is_of_its_kind(manifest: dict[str, Any], version: str) -> None:
    check(manifest, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("name", "template"), PODS, ids=[name for name, _ in PODS])
def test_a_template_makes_a_pod(name: str, template: dict[str, Any], version: str) -> None:
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}, version)


@pytest.mark.parametrize("cluster", CLUSTERS, ids=name_of)
def test_a_ray_cluster_is_as_kuberay_defines_it(cluster: dict[str, Any]) -> None:
    assert cluster["kind"] == "RayCluster"
    jsonschema_rs.validate(SCHEMA, cluster["spec"])


def test_what_is_wrong_is_found() -> None:
    """The checks can fail: an unknown field of a pod, and one of a group."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"container": []}}
    with pytest.raises(kubernetes_validate.ValidationError):
        check(pod, VERSIONS[-1])
    spec = {**CLUSTERS[0]["spec"], "workerGroupSpecs": [{"groupName": "gpu", "replica": 2}]}
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validate(SCHEMA, spec)


def test_what_a_manifest_names_is_there() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for one in MANIFESTS}
    # KubeRay makes the secret of a cluster's token, by the cluster's name.
    names |= {("Secret", one["metadata"]["name"]) for one in CLUSTERS}
    for _name, template in PODS:
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        claims = [
            one["persistentVolumeClaim"]["claimName"]
            for one in volumes.values()
            if len(one) > 1 and "persistentVolumeClaim" in one
        ]
        assert {("PersistentVolumeClaim", claim) for claim in claims} <= names
        for container in template["spec"]["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
            for source in container.get("envFrom", []):
                kind = "ConfigMap" if "configMapRef" in source else "Secret"
                assert (kind, next(iter(source.values()))["name"]) in names
            for variable in container.get("env", []):
                if key := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert ("Secret", key["name"]) in names


def test_settings_and_roles_exist() -> None:
    variables = [key for one in OTHERS for part in ("data", "stringData") for key in one.get(part, {})]
    for _name, template in PODS:
        for container in template["spec"]["containers"]:
            variables += [variable["name"] for variable in container.get("env", [])]
            command = container.get("command", [])
            if "--role" in command:
                assert command[-1] in set(Role)
    settings = {f"TUNESMITH_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in variables if name.startswith("TUNESMITH_")} <= settings


def test_pods_that_train_have_gpus_and_none_runs_as_root() -> None:
    for name, template in PODS:
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        has_gpu = any("nvidia.com/gpu" in one["resources"]["limits"] for one in spec["containers"])
        assert has_gpu == name.endswith(("-worker", "-gpu")), name
        for container in spec["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not container["securityContext"]["allowPrivilegeEscalation"]
