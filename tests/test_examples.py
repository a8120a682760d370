"""The examples for clusters: their syntax, their fields, and that ppxcls understands their commands."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

import ppxcls
from ppxcls.cli.launch import _job_start
from ppxcls.system.supervisor import launcher_options
from tests.conftest import ROOT

SLURM, JOBSET = ROOT / "docs/examples/slurm.sh", ROOT / "docs/examples/jobset.yaml"


def jobset() -> dict[str, Any]:
    (document,) = yaml.safe_load_all(JOBSET.read_text())
    return document


def jobset_container() -> dict[str, Any]:
    (job,) = jobset()["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container


def test_the_shell_script() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    if (shellcheck := shutil.which("shellcheck")) is not None:
        subprocess.run([shellcheck, str(SLURM)], check=True)


def test_the_script_requeues_after_a_signal_and_after_a_failure(tmp_path: Any) -> None:
    """The job's exit code decides. Stubs replace Slurm's programs."""
    for name, text in {
        "scontrol": 'case $1 in show) echo localhost;; requeue) echo "requeued $2";; esac',
        "getent": "echo 127.0.0.1 localhost",
        "srun": "exit $CODE",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_ID": "7",
    }
    for code, restarts, is_requeued in (
        (0, 0, False),
        (2, 0, False),
        (75, 0, True),
        (1, 9, True),
        (1, 10, False),
    ):
        variables = {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
        result = subprocess.run(
            ["bash", str(SLURM)],
            check=False,
            capture_output=True,
            text=True,
            env={**environment, **variables},
        )
        assert result.returncode == code, result.stderr
        assert (result.stdout == "requeued 7\n") is is_requeued


def test_the_jobset_has_the_published_fields() -> None:
    """Checks with Kubeflow's models, which are generated from the schemas of JobSet and Kubernetes.

    An invalid name or type raises an error or is dropped.
    """
    models = pytest.importorskip("kubeflow_trainer_api.models")
    document = jobset()
    assert models.JobsetV1alpha2JobSet.from_dict(document).to_dict() == document
    document["spec"]["failurePolicy"]["maxRestart"] = 3
    assert models.JobsetV1alpha2JobSet.from_dict(document).to_dict() != document
    document["spec"]["failurePolicy"] = {"maxRestarts": "many"}
    with pytest.raises(ValueError, match="maxRestarts"):
        models.JobsetV1alpha2JobSet.from_dict(document)


def test_the_jobset_restarts_all_pods_but_after_an_invalid_config() -> None:
    spec = jobset()["spec"]
    (job,) = spec["replicatedJobs"]
    pods = job["template"]["spec"]
    assert pods["parallelism"] == pods["completions"] == 2
    assert pods["backoffLimit"] == 0, "a failed pod fails the job, which JobSet starts again as a whole"
    assert pods["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert spec["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in jobset_container()["volumeMounts"]} == volumes


@pytest.mark.parametrize("text", [SLURM.read_text(), jobset_container()["args"][0]], ids=["slurm", "jobset"])
def test_the_commands_are_understood(text: str) -> None:
    text = text.replace('"$SLURM_JOB_NUM_NODES"', "2").replace('"$address:8090"', "10.0.0.1:8090")
    words = re.sub(r"\\\n|\$[A-Z_]+|\"", " ", text)
    command = words.split("exec ppxcls launch", 1)[1].split("'")[0].split()
    start = _job_start(command)
    assert command[start] == "train"
    options = launcher_options(command[:start])
    assert options["--nnodes"] == "2"
    assert options["--restarts"] == "0", "the engine of the cluster restarts"
    assert options["--master"].endswith(":8090")
    assert "--host" in options
    job = command[start:]
    overrides = [job[i + 1] for i, word in enumerate(job) if word == "-o"]
    config = ppxcls.load_config(ROOT / job[job.index("-c") + 1], [*overrides, "Global.device=cpu"])
    assert config.Global.checkpoints == "auto"
    assert config.Global.save_interval_minutes == 10


def test_the_port_is_the_one_that_is_used() -> None:
    assert [port["containerPort"] for port in jobset_container()["ports"]] == [8090]
