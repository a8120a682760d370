"""The examples for clusters: their syntax, and that what they type is understood here."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

import ppxcls
from ppxcls.system.node_group import group_for
from ppxcls.system.supervisor import launcher_options
from tests.conftest import ROOT

SLURM, JOBSET = ROOT / "docs/examples/slurm.sh", ROOT / "docs/examples/jobset.yaml"


def jobset_container() -> dict[str, Any]:
    (document,) = yaml.safe_load_all(JOBSET.read_text())
    assert (document["apiVersion"], document["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 2
    assert spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    names = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
    return container


def test_the_shell_script() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    if (shellcheck := shutil.which("shellcheck")) is not None:
        subprocess.run([shellcheck, str(SLURM)], check=True)


@pytest.mark.parametrize("text", [SLURM.read_text(), jobset_container()["args"][0]], ids=["slurm", "jobset"])
def test_what_is_typed_is_understood(text: str) -> None:
    words = re.sub(
        r"\\\n|\$[A-Z_]+|\"", " ", text.replace('"$SLURM_JOB_NUM_NODES"', "2").replace('"$address:8090"', "10.0.0.1:8090")
    )
    command = words.split("tools/launch.py", 1)[1].split("'")[0].split()
    options = launcher_options(command)
    assert options["--nnodes"] == "2"
    assert "--host" in options
    group_for(options, int(options["--min-nodes"]), 1.0)
    overrides = [command[i + 1] for i, word in enumerate(command) if word == "-o"]
    config = ppxcls.load_config(ROOT / command[command.index("-c") + 1], [*overrides, "Global.device=cpu"])
    samples = config.DataLoader.Train.sampler.batch_size * 2 * len(options["--gpus"].split(","))
    assert config.Global.samples_per_step == samples, "two nodes of eight make a step without accumulation"
    assert options["--master"].endswith(":8090")


def test_the_ports_are_those_that_are_used() -> None:
    assert [port["containerPort"] for port in jobset_container()["ports"]] == [8090, 8091]
