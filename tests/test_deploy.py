from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import yaml
import zarr

from stdist import graph, starters
from stdist.graph import InProcess
from stdist.graph.status import describe_runs
from stdist.methods.registry import PROGRAMS
from stdist.methods.simulate import simulate
from stdist.store.verify import verify

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((DEPLOY / "slurm").glob("*.sbatch"))
TEXTS = [path for path in sorted(DEPLOY.rglob("*")) if path.is_file() and path.suffix != ".png"]
PROGRAM = "crescendo --batch-key batch --clusters cell_type"


def relative(path):
    return str(path.relative_to(DEPLOY))


def named(paths):
    return {"argvalues": paths, "ids": [relative(path) for path in paths]}


def read(path):
    return yaml.safe_load(path.read_text())


# Kubernetes


def test_every_manifest_is_tested():
    kinds = {path.name: read(path)["kind"] for path in MANIFESTS}
    assert kinds == {
        "daskcluster-cpu.yaml": "DaskCluster",
        "daskcluster-gpu.yaml": "DaskCluster",
        "daskjob.yaml": "DaskJob",
        "stores.yaml": "PersistentVolumeClaim",
    }


def operator_schema(kind):
    operator = pytest.importorskip("dask_kubernetes.operator")
    folder = Path(operator.__file__).parent / "deployment/helm/dask-kubernetes-operator/crds"
    definition = read(folder / f"{kind.lower()}.yaml")
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def unknown_fields(document, schema, place=""):
    """Fields the schema does not name: jsonschema ignores them, Kubernetes drops them."""
    if isinstance(document, list):
        for number, item in enumerate(document):
            yield from unknown_fields(item, schema.get("items", {}), f"{place}[{number}]")
    elif isinstance(document, dict) and "properties" in schema:
        for name, value in document.items():
            if name in schema["properties"]:
                yield from unknown_fields(value, schema["properties"][name], f"{place}.{name}")
            else:
                yield f"{place}.{name}"


@pytest.mark.parametrize("path", **named([p for p in MANIFESTS if p.name.startswith("dask")]))
def test_operator_accepts(path):
    jsonschema = pytest.importorskip("jsonschema")
    document = read(path)
    assert document["apiVersion"] == "kubernetes.dask.org/v1"
    schema = operator_schema(document["kind"])
    jsonschema.validate(document, schema)
    assert list(unknown_fields(document["spec"], schema["properties"]["spec"])) == []


def test_a_typed_field_name_is_found():
    document = read(DEPLOY / "kubernetes/daskcluster-cpu.yaml")
    container = document["spec"]["worker"]["spec"]["containers"][0]
    container["volumeMount"] = container.pop("volumeMounts")
    schema = operator_schema("DaskCluster")["properties"]["spec"]
    found = list(unknown_fields(document["spec"], schema))
    assert found == [".worker.spec.containers[0].volumeMount"]


def pods(path):
    """Pod specifications of a manifest by component."""
    spec = read(path)["spec"]
    if "job" in spec:
        yield "job", spec["job"]["spec"]
        spec = spec["cluster"]["spec"]
    yield "worker", spec["worker"]["spec"]
    yield "scheduler", spec["scheduler"]["spec"]


PODS = [
    pytest.param(pod, component, id=f"{path.stem}-{component}")
    for path in MANIFESTS
    if path.name.startswith("dask")
    for component, pod in pods(path)
]


@pytest.mark.parametrize(("pod", "component"), PODS)
def test_kubernetes_accepts_the_pods(pod, component):
    validator = pytest.importorskip("kubernetes_validate")
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": component}, "spec": pod}
    validator.validate(document, validator.latest_version(), strict=True)


def test_kubernetes_accepts_the_claim():
    validator = pytest.importorskip("kubernetes_validate")
    claim = read(DEPLOY / "kubernetes/stores.yaml")
    validator.validate(claim, validator.latest_version(), strict=True)


@pytest.mark.parametrize(("pod", "component"), PODS)
def test_pods_are_bounded(pod, component):
    (container,) = pod["containers"]
    assert container["name"] == component
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes.keys()
    if component != "scheduler":
        claim = read(DEPLOY / "kubernetes/stores.yaml")["metadata"]["name"]
        assert volumes["stores"]["persistentVolumeClaim"]["claimName"] == claim
    if component == "worker":
        assert "sizeLimit" in volumes["scratch"]["emptyDir"]
        arguments = container["args"]
        assert arguments[arguments.index("--memory-limit") + 1] == "$(MEMORY_LIMIT)"
        assert arguments[arguments.index("--local-directory") + 1] == "/scratch"
        (limit,) = container["env"]
        assert limit["valueFrom"]["resourceFieldRef"]["resource"] == "limits.memory"


@pytest.mark.parametrize("path", **named([p for p in MANIFESTS if p.name.startswith("dask")]))
def test_service_selects_its_scheduler(path):
    document = read(path)
    spec = document["spec"].get("cluster", document)["spec"]
    service = spec["scheduler"]["service"]
    assert service["selector"] == {
        "dask.org/cluster-name": document["metadata"]["name"],
        "dask.org/component": "scheduler",
    }
    ports = spec["scheduler"]["spec"]["containers"][0]["ports"]
    assert [p["targetPort"] for p in service["ports"]] == [p["name"] for p in ports]


def test_gpu_workers_ask_for_a_gpu():
    pod = dict(pods(DEPLOY / "kubernetes/daskcluster-gpu.yaml"))["worker"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["args"][:3] == ["dask", "cuda", "worker"]


def test_job_runs_unless_there_is_something_to_resume(tmp_path):
    pod = dict(pods(DEPLOY / "kubernetes/daskjob.yaml"))["job"]
    assert pod["restartPolicy"] == "OnFailure"
    shell, flag, script = pod["containers"][0]["args"]
    program(tmp_path / "bin/stdist", 'echo "$1" >> calls; exit $(cat $1)')
    for resume, run, calls, code in ((0, 9, "resume", 0), (5, 9, "resume", 1), (2, 0, "both", 0)):
        (tmp_path / "calls").unlink(missing_ok=True)
        (tmp_path / "resume").write_text(str(resume))
        (tmp_path / "run").write_text(str(run))
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        done = subprocess.run([shell, flag, script], cwd=tmp_path, env=environment, check=False)
        assert done.returncode == code
        expected = ["resume", "run"] if calls == "both" else [calls]
        assert (tmp_path / "calls").read_text().split() == expected


# commands in files


def shell_lines(path):
    """Lines of shell in a file, whole, with variables replaced by plausible words."""
    text = path.read_text().replace("\\\n", " ")
    for name, value in {"store": "cohort.zarr", "scheduler": "scheduler.json"}.items():
        text = text.replace(f'"${name}"', value)
    text = text.replace('"$DASK_SCHEDULER_ADDRESS"', "tcp://stdist-scheduler:8786")
    text = re.sub(r'"\$\(\(.*?\)\)MiB"|"\$\{SLURM\w+\}MiB"', "4096MiB", text)
    text = re.sub(r'"\$\{TMPDIR:-(.*?)\}"', r"\1", text)
    if path.suffix == ".md":
        spans = re.findall(r"`([^`\n]+)`|^ {4}(.+)$", text, re.MULTILINE)
        return [one or other for one, other in spans]
    return text.splitlines()


def found_commands(name):
    """Calls of a program in the files of `deploy`, as lists of words."""
    pattern = re.compile(rf"(?:^|[\s#`]){name} (?!=)([^`;|&]*)")
    for path in TEXTS:
        for line in shell_lines(path):
            if line.lstrip().startswith("#") and not re.match(r"\s*#\s{{2,}}", line):
                line = " ".join(re.findall(r"`([^`]+)`", line))
            for words in pattern.findall(line):
                # not an ellipsis, nor a copied folder of that name
                if "..." not in words and not re.match(rf"/|{name}$", words):
                    yield relative(path), shlex.split(words, comments=True)


def parse(command, words, name):
    """Parse as click would, also the names of subcommands, and run nothing."""
    context = command.make_context(name, list(words), resilient_parsing=False)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        sub, child, more = command.resolve_command(context, rest)
        with context:
            parse(child, more, sub)


STDIST = [pytest.param(words, id=f"{path}-{words[0]}") for path, words in found_commands("stdist")]


def test_commands_are_found():
    found = {(path, words[0]) for path, words in found_commands("stdist")}
    for path in ("slurm/cpu.sbatch", "slurm/gpu.sbatch", "kubernetes/daskjob.yaml"):
        assert {(path, "resume"), (path, "run")} <= found
    assert {("README.md", "run"), ("README.md", "status")} <= found


@pytest.fixture(scope="module")
def cli():
    return importlib.import_module("stdist.cli.main").cli


@pytest.mark.parametrize("words", STDIST)
def test_command_line_accepts(cli, words):
    parse(cli, words, "stdist")


def test_wrong_command_line_is_found(cli):
    with pytest.raises(click.UsageError):
        parse(cli, ["run", "crescendo", "cohort.zarr", "--batchkey", "batch"], "stdist")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=f"{path}-{words[0]}")
        for path, words in found_commands("dask")
        if words[0] in ("scheduler", "worker")
    ],
)
def test_dask_accepts(words):
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    words = [word for word in words if not word.startswith("2>")]
    parse({"scheduler": scheduler, "worker": worker}[words[0]], words[1:], words[0])


@pytest.mark.parametrize(("pod", "component"), PODS)
def test_dask_accepts_the_arguments_of_pods(pod, component):
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    words = pod["containers"][0]["args"]
    if words[:2] in (["dask", "scheduler"], ["dask", "worker"]):
        parse({"scheduler": scheduler, "worker": worker}[words[1]], words[2:], words[1])
    else:
        assert words[0] in ("sh", "dask")


# Dask's configuration and dask-jobqueue


def test_dask_configuration_is_that_of_connect():
    import dask

    text = subprocess.run(
        [
            sys.executable,
            "-c",
            "import dask, distributed, json; print(json.dumps(dask.config.config))",
        ],
        env=os.environ | {"DASK_CONFIG": str(DEPLOY / "dask/stdist.yaml")},
        capture_output=True,
        check=True,
    ).stdout
    found = json.loads(text)
    for name, value in starters.WORKER_CONFIG.items():
        assert dask.config.get(name, config=found) == value
    assert dask.config.get("stdist.wait-for-workers", config=found) == "10m"


def test_jobs_of_dask_jobqueue():
    dask_jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    site = {"queue": "long", "account": "lab", "job-script-prologue": ["module load python"]}
    settings = read(DEPLOY / "slurm/jobqueue.yaml")["jobqueue"]["slurm"]
    made = []

    class SLURMCluster(dask_jobqueue.SLURMCluster):
        def scale(self, n=None, jobs=None):  # would call sbatch
            made.append((n, jobs))

    fake = SimpleNamespace(SLURMCluster=SLURMCluster)
    defaults = dask.config.get("jobqueue.slurm")
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set(starters.WORKER_CONFIG | {"jobqueue.slurm": defaults | settings | site}),
    ):
        patch.setattr(starters, "_extra", lambda *names: fake)
        with starters.STARTERS["slurm"]({"n_workers": 64}) as cluster:
            script = cluster.job_script()
    assert made[0] == (64, None)
    for line in (
        "#SBATCH -J stdist",
        "#SBATCH -p long",
        "#SBATCH -A lab",
        "#SBATCH --cpus-per-task=16",
        "#SBATCH --mem=60G",
        "#SBATCH -t 04:00:00",
        "#SBATCH -o slurm-logs/stdist-%J.out",
        "export OMP_NUM_THREADS=1",
        "export DASK_DISTRIBUTED__WORKER__MEMORY__TARGET=False",
        "module load python",
    ):
        assert line in script.splitlines()
    command = script.strip().splitlines()[-1]
    for words in (
        "--nworkers 16",
        "--nthreads 1",
        "--memory-limit 3.73GiB",
        "--local-directory /tmp",
        "--lifetime 230m --lifetime-stagger 5m",
    ):
        assert words in command


# containers


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu", "stdist.def"])
def test_container_files_copy_what_exists(name):
    text = (DEPLOY / "container" / name).read_text()
    if name.startswith("Docker"):
        lines = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        assert re.search(r"^USER 1000$", text, re.MULTILINE)
        assert 'ENTRYPOINT ["tini", "-g", "--"]' in text
    else:
        lines = re.findall(r"^    (\S+) /\S+$", text, re.MULTILINE)
    sources = [source for line in lines for source in line.split()]
    assert {"graph", "stdist", "constraints.txt", "deploy/dask/stdist.yaml"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    assert "--constraint" in text


# SLURM


@pytest.mark.parametrize("path", **named(SCRIPTS))
def test_bash_reads(path):
    subprocess.run(["bash", "-n", path], check=True)
    directives = re.findall(r"^#SBATCH --([\w-]+)", path.read_text(), re.MULTILINE)
    assert {"signal", "requeue", "time", "nodes", "open-mode"} <= set(directives)


def test_scripts_differ_only_where_they_must():
    cpu, gpu = (path.read_text().splitlines() for path in SCRIPTS)
    changed = [line for line in difflib.ndiff(cpu, gpu) if line[0] in "+-"]
    assert all(re.search(r"#|batch|worker|memory|local-dir", line) for line in changed)


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def path_with_stdist(bin):
    """PATH with `dask` and `stdist` of this interpreter, installed or not."""
    program(bin / "stdist", f'exec {sys.executable} -m stdist "$@"')
    return f"{bin}:{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"


class FakeSlurm:
    """`srun` and `scontrol` on PATH, and what `sbatch` would do, with processes of this machine."""

    def __init__(self, folder):
        self.folder, self.spool = folder, folder / "spool"
        bin = folder / "bin"
        program(bin / "srun", 'for _ in $(seq $SLURM_NTASKS); do "$@" & done\nwait')
        program(bin / "scontrol", f'echo "$@" >> {folder / "scontrol.log"}')
        self.environment = os.environ | {
            "PATH": path_with_stdist(bin),
            "PYTHONPATH": str(ROOT),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS": "2",
            "SLURM_MEM_PER_CPU": "1500",
            "DASK_CONFIG": str(DEPLOY / "dask/stdist.yaml"),
        }

    def sbatch(self, script, *arguments):
        """Start a copy of the script, as SLURM does, in a process group of its own."""
        shutil.copy(script, self.spool)
        with (self.folder / "log").open("a") as log:
            self.job = subprocess.Popen(
                ["bash", self.spool, *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self.job

    def end(self, seconds=60):
        """Wait for the job, then kill what it left behind, as SLURM does."""
        try:
            return self.job.wait(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.job.pid, signal.SIGKILL)
            self.job.wait()

    def requeued(self):
        log = self.folder / "scontrol.log"
        return log.read_text().split("\n")[:-1] if log.exists() else []


@pytest.fixture
def slurm(tmp_path):
    fake = FakeSlurm(tmp_path)
    yield fake
    with suppress(subprocess.TimeoutExpired):
        fake.end(0.1)


def finished_blocks(store):
    try:
        stages = describe_runs(store)[-1]["stages"]
    except (OSError, ValueError, KeyError):
        return 0  # read while it was being written
    return sum(stage["done"] for stage in stages if stage["name"] == "match")


@pytest.mark.slow
@pytest.mark.fault
def test_walltime_stops_requeues_and_resumes(slurm, tmp_path):
    store = tmp_path / "cohort.zarr"
    simulate(store, n_cells=150_000, n_genes=96, rng=3, block_length=1024)
    expected = shutil.copytree(store, tmp_path / "expected.zarr")
    script = tmp_path / "cpu.sbatch"
    text = (DEPLOY / "slurm/cpu.sbatch").read_text()
    script.write_text(text.replace("cell_type --client", "cell_type --block-length 1024 --client"))

    job = slurm.sbatch(script, store.name)
    deadline = time.monotonic() + 120
    while finished_blocks(store) < 3:
        assert job.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGTERM)  # --signal=B:TERM: to the batch shell only
    assert slurm.end() == 5
    log = (tmp_path / "log").read_text()
    assert "nothing-to-resume" in log
    assert "interrupted" in log
    assert slurm.requeued() == ["requeue 7"]
    (waiting,) = graph.unfinished(store)
    kept = finished_blocks(store)
    total = next(s for s in describe_runs(store)[-1]["stages"] if s["name"] == "match")["tasks"]
    assert 3 <= kept < total

    slurm.sbatch(script, store.name)
    assert slurm.end(180) == 0, (tmp_path / "log").read_text()
    assert slurm.requeued() == ["requeue 7"]
    assert graph.unfinished(store) == []
    assert describe_runs(store)[-1]["run"] == waiting.name
    assert not list(tmp_path.glob("scheduler-*.json"))
    assert verify(store)[0] == []

    parameters = {"data": str(expected), "batch_key": "batch", "clusters": "cell_type"}
    with pytest.warns(UserWarning, match="cells-empty"):
        graph.start(PROGRAMS["crescendo"].build(parameters), InProcess())
    one, other = (zarr.open(path)["layers/crescendo"][:] for path in (store, expected))
    np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_scheduler_that_dies_ends_the_job(slurm, tmp_path):
    program(tmp_path / "bin/dask", "exit 1")
    slurm.sbatch(DEPLOY / "slurm/cpu.sbatch", "cohort.zarr")
    assert slurm.end(30) != 0
    assert slurm.requeued() == []


SLURM_CONF = """
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


@pytest.fixture
def slurmctld(tmp_path):
    """A real SLURM of one node, as root; yields its environment."""
    programs = ("slurmctld", "slurmd", "munged", "setpriv")
    missing = [name for name in programs if shutil.which(name, path="/usr/sbin:/usr/bin") is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)} (apt-get install slurm-wlm munge)")
    if os.getuid() != 0:
        pytest.skip("needs root to start slurmd")
    host = os.uname().nodename.split(".")[0]
    (tmp_path / "state").mkdir()
    (tmp_path / "spool").mkdir()
    conf = tmp_path / "slurm.conf"
    conf.write_text(SLURM_CONF.format(host=host, folder=tmp_path))
    environment = os.environ | {
        "SLURM_CONF": str(conf),
        "PATH": path_with_stdist(tmp_path / "bin"),
        "PYTHONPATH": str(ROOT),
    }
    own_munge = not Path("/run/munge/munge.socket.2").exists()
    if own_munge:
        subprocess.run(
            "mkdir -p /run/munge; chown munge:munge /run/munge /var/log/munge /var/lib/munge"
            " /etc/munge /etc/munge/munge.key; chmod 700 /etc/munge;"
            " chmod 400 /etc/munge/munge.key;"
            " setpriv --reuid munge --regid munge --init-groups munged",
            shell=True,
            check=True,
            env=environment,
        )
    daemons = [
        subprocess.Popen(["slurmctld", "-D", "-f", conf], env=environment),
        subprocess.Popen(["slurmd", "-D", "-f", conf, "-N", host], env=environment),
    ]
    try:
        deadline = time.monotonic() + 30
        while ask(environment, "sinfo", "-h", "-o", "%T") != "idle":
            assert time.monotonic() < deadline, (tmp_path / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        if own_munge:
            pid = int(Path("/run/munge/munged.pid").read_text())
            os.kill(pid, signal.SIGTERM)


def ask(environment, *command):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.mark.slow
def test_real_slurm(slurmctld, tmp_path):
    store = tmp_path / "cohort.zarr"
    simulate(store, n_cells=20_000, n_genes=30, rng=3)
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    small = ("--nodes=1", "--ntasks-per-node=2", "--mem-per-cpu=1500", "--time=30")
    job = subprocess.run(
        ["sbatch", "--parsable", *small, "deploy/slurm/cpu.sbatch", store.name],
        cwd=tmp_path,
        env=slurmctld,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    deadline = time.monotonic() + 150
    while job in ask(slurmctld, "squeue", "-h", "-o", "%i").split():
        assert time.monotonic() < deadline
        time.sleep(1)
    log = (tmp_path / f"stdist-{job}.log").read_text()
    assert graph.unfinished(store) == [], log
    assert describe_runs(store)[-1]["program"] == "crescendo", log
    assert "JobState=COMPLETED" in ask(slurmctld, "scontrol", "show", "job", job), log
