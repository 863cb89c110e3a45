"""The launch templates of docs/launch, as far as they run without the clusters they are for."""

import math
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from train.__main__ import _parser
from train.loop import Outcome

pytestmark = pytest.mark.fast

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "docs" / "launch"
CONFIG = "configs/text/demo.toml"


@pytest.fixture
def stubs(tmp_path):
    """Make programs that write down what they are called with, one argument a line."""

    def stub(name, body=""):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        record = f'printf "%s\\n" {name} "$@" >> "{tmp_path}/calls"\n'
        path.write_text(f"#!/bin/bash\n{record}{body}\n")
        path.chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", LAUNCH / script, *arguments],
            cwd=ROOT,
            env=os.environ | {"PATH": path} | environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        calls = tmp_path / "calls"
        return result, calls.read_text().splitlines() if calls.exists() else []

    return stub, run


def train_options(arguments):
    """What `python -m train` makes of a command line; it ends the test if nothing."""
    assert arguments[:3] == ["python", "-m", "train"]
    return _parser().parse_intermixed_args(arguments[3:])


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_shell_and_name_files_that_exist(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    named = [word for word in script.read_text().split() if word.startswith(("configs/", "docs/"))]
    assert named and all((ROOT / name).exists() for name in named), named


@pytest.mark.parametrize(
    ("code", "restarts", "again"),
    [
        (Outcome.FINISHED, 0, False),
        (Outcome.DIVERGED, 0, False),
        (2, 0, False),
        (Outcome.NOT_SAVED, 0, False),
        (Outcome.INTERRUPTED, 0, True),
        (Outcome.INTERRUPTED, 99, True),
        (Outcome.HUNG, 0, True),
        (Outcome.PROCESS_LOST, 19, True),
        (Outcome.PROCESS_LOST, 20, False),
        (137, 0, True),
    ],
)
def test_slurm_requeues_what_can_go_on(stubs, code, restarts, again):
    stub, run = stubs
    stub("srun", f"exit {int(code)}")
    stub("scontrol")
    settings = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    result, calls = run("slurm.sh", CONFIG, "steps=3", "--workdir", "a folder", **settings)
    assert result.returncode == code, result.stderr
    options = train_options(calls[2:9])
    assert options.workdir == Path("a folder") and options.overrides == ["steps=3"]
    assert calls[9:] == (["scontrol", "requeue", "7"] if again else [])


def test_the_job_set_is_what_its_slice_and_the_exit_codes_are():
    job_set = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert job_set["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and job_set["kind"] == "JobSet"
    (replicated,) = job_set["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(map(int, topology.split("x")))
    machines = chips // container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == machines == 4
    # Kubernetes takes a policy of exit codes with this alone.
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    codes, disruption = job["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2, Outcome.DIVERGED, Outcome.INTERRUPTED],
    }
    assert disruption["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    mistake, stopped = job_set["spec"]["failurePolicy"]["rules"]
    assert (mistake["action"], stopped["action"]) == (
        "FailJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    )
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    options = train_options(container["command"])
    assert (ROOT / options.config).is_file() and options.workdir.is_relative_to("/runs")


def test_xpk_gets_the_command_and_the_exit_codes(stubs):
    stub, run = stubs
    stub("xpk")
    settings = {"CLUSTER": "c", "IMAGE": "i", "STORAGE": "s", "NAME": "mine"}
    result, calls = run("xpk.sh", CONFIG, "steps=1|2", **settings)
    assert result.returncode == 0, result.stderr
    assert "--restart-on-exit-codes=5,6,75" in calls
    command = next(call for call in calls if call.startswith("--command="))
    words = subprocess.run(
        [
            "bash",
            "-c",
            command.removeprefix("--command=exec ").replace("python", "printf '%s\n'", 1),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    options = train_options(["python", *words])
    assert options.overrides == ["steps=1|2"] and options.workdir == Path("/runs/mine")
    assert run("xpk.sh", CONFIG, CLUSTER="c")[0].returncode != 0


def test_tpu_machines_start_and_stop_the_program_itself(stubs, tmp_path):
    """The command for the machines runs here, in place of them."""
    stub, run = stubs
    here = f'for word in "$@"; do case $word in --command=*) cd {tmp_path}; '
    stub("gcloud", here + 'bash -c "${word#--command=}";; esac; done')
    program = tmp_path / "genjax" / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/bash\ntrap "echo stopped; exit 75" TERM\nprintf "%s\\n" python "$@"\n'
        "touch started\nfor _ in {1..1000}; do sleep 0.02; done\n"
    )
    program.chmod(0o755)
    folder, log = tmp_path / "genjax", tmp_path / "genjax" / "train.log"
    result, calls = run("tpu_vm.sh", "start", CONFIG, "steps=1|2", "--workdir", "a folder")
    assert result.returncode == 0 and "--worker=all" in calls, result.stderr
    try:
        subprocess.run(
            ["timeout", "10", "bash", "-c", "until [ -e started ]; do sleep 0.05; done"],
            cwd=folder,
            check=True,
        )
        options = train_options(log.read_text().splitlines())
        assert options.overrides == ["steps=1|2"] and options.workdir == Path("a folder")
    finally:
        # Relative to the machine's home, as the script has it.
        result, _ = run("tpu_vm.sh", "stop")
    assert result.returncode == 0, result.stderr
    subprocess.run(
        ["timeout", "10", "bash", "-c", "until grep -q stopped train.log; do sleep 0.05; done"],
        cwd=folder,
        check=True,
    )
    assert run("tpu_vm.sh", "strat")[0].returncode == 2


def test_open_mpi_starts_as_many_as_asked_for(stubs):
    stub, run = stubs
    stub("mpirun")
    result, calls = run("mpi.sh", CONFIG, "--workdir", "w", PROCESSES="2")
    assert result.returncode == 0 and calls[1:3] == ["-n", "2"], result.stderr
    assert train_options(calls[calls.index("python") :]).workdir == Path("w")
    assert run("mpi.sh", CONFIG)[0].returncode != 0
