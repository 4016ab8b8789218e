"""The manifest for Kubernetes: valid by its schemas, command understood, probes open, labels that fit."""

import copy
import re
from pathlib import Path

import pytest
import yaml

from canvas_fm.cli import build_parser
from canvas_fm.files.shipped import DEFAULT_ENCODER
from serving.api.middleware.auth import OPEN_PATHS
from serving.protocol.settings import Limits

ROOT = Path(__file__).parents[3]
DEPLOYMENT, SERVICE = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def test_the_command_is_understood():
    program, *words = CONTAINER["command"]
    args = build_parser().parse_args(words)
    assert (program, args.verb) == ("canvas-fm", "serve")


def test_probes_ask_open_paths_of_the_port_that_is_served():
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) in CONTAINER["command"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = CONTAINER[probe]["httpGet"]
        assert asked["path"] in OPEN_PATHS
        assert asked["port"] == port["name"]
    assert SERVICE["spec"]["ports"][0]["targetPort"] == port["name"]


def test_what_is_mounted_is_a_volume_and_labels_fit():
    volumes = {volume["name"] for volume in POD["volumes"]}
    for container in (CONTAINER, *POD["initContainers"]):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert labels == DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"]


def test_a_pod_may_take_as_long_to_end_as_what_is_in_flight():
    assert POD["terminationGracePeriodSeconds"] > Limits().stopping_s > Limits().deadline_s
    assert Limits(deadline_s=300).stopping_s > 300
    assert Limits(stop_s=3).stopping_s == 3


def test_the_kustomization_of_the_page_changes_what_it_says():
    """Its image is the manifest's, and its patch replaces the model of the command."""
    page = (ROOT / "docs" / "how-to" / "train-and-serve" / "serve.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(resources:.*?)```", page, re.S)
    made = yaml.safe_load(block)
    assert made["resources"] == ["kubernetes.yaml"]
    (image,), (patch,) = made["images"], made["patches"]
    assert CONTAINER["image"].partition(":")[0] == image["name"]
    assert patch["target"] == {"kind": DEPLOYMENT["kind"], "name": DEPLOYMENT["metadata"]["name"]}
    (change,) = yaml.safe_load(patch["patch"])
    part = DEPLOYMENT
    for key in change["path"].strip("/").split("/"):
        part = part[int(key) if isinstance(part, list) else key]
    assert (change["op"], part) == ("replace", DEFAULT_ENCODER)


@pytest.mark.parametrize("version", ["1.31", "1.37"])
def test_the_manifest_is_valid_by_the_schemas_of_kubernetes(version):
    checker = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed: pip install kubernetes-validate"
    )
    for each in (DEPLOYMENT, SERVICE):
        checker.validate(each, version, strict=True)
    wrong = copy.deepcopy(DEPLOYMENT)
    wrong["spec"]["template"]["spec"]["containers"][0]["startupProbe"]["httpget"] = {}
    with pytest.raises(checker.ValidationError, match="httpget"):
        checker.validate(wrong, version, strict=True)
