"""Job files for machines elsewhere: each is read back by what will read it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gptoss_tune.cli import main
from gptoss_tune.recipe import load_recipe
from gptoss_tune.workflows.cluster.job import label_name, seconds_of

IMAGE = "1234.dkr.ecr.eu-west-1.amazonaws.com/gptoss-tune:1"
OPTIONS = {
    "skypilot": ["--bucket", "s3://mine", "--spot"],
    "kubernetes": ["--claim", "work"],
    "hf-jobs": ["--bucket", "hf://buckets/me/runs"],
    "sagemaker": ["--bucket", "s3://mine/tuning", "--image", IMAGE, "--spot"],
}
ENDINGS = {
    "skypilot": "sky.yaml",
    "kubernetes": "k8s.yaml",
    "hf-jobs": "hf.sh",
    "sagemaker": "sagemaker.py",
}


@pytest.fixture
def launch(tmp_path, monkeypatch, capfd):
    """Return a function that writes a job file here; it returns the text and what was said."""
    (tmp_path / "my data").mkdir()
    for name in ("my data/rows.jsonl", "prompts.jsonl", "other.txt"):
        (tmp_path / name).write_text("{}\n", encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(
        "model: {name_or_path: openai/gpt-oss-20b}\n"
        "data: {train: my data/rows.jsonl}\n"
        "train: {output_dir: runs/first, max_steps: 4, save_steps: 2}\n"
        "evaluation: {prompts: prompts.jsonl}\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)

    def run(system, *arguments, recipe="recipe.yaml", code=0):
        words = ["gptoss-tune", "launch", recipe, f"--{system}", *OPTIONS[system], *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        try:
            main()
            ended = 0
        except SystemExit as left:
            ended = left.code or 0
        said = capfd.readouterr()
        assert ended == code, said.err
        place = tmp_path / f"first.{ENDINGS[system]}"
        return (place.read_text() if code == 0 else "", said.out + said.err)

    return run


def script_parses(script):
    ended = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True)
    return ended.returncode == 0


def recipe_in(script, tmp_path):
    """Return the recipe that a script writes, loaded."""
    text = script.split("<<'END_OF_RECIPE'\n")[1].split("\nEND_OF_RECIPE")[0]
    (tmp_path / "there.yaml").write_text(text, encoding="utf-8")
    return load_recipe(tmp_path / "there.yaml")


@pytest.mark.parametrize("system", OPTIONS)
def test_no_token_stands_in_a_file_and_75_goes_on(launch, monkeypatch, system):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_very_secret")
    text, said = launch(system, "tracking.wandb=online", "train.seed=3")
    assert "very_secret" not in text + said
    assert "HF_TOKEN" in text and "WANDB_API_KEY" in text
    assert "then code=75" in text and "gptoss_tune.train" in text
    assert "checkpoint, exit code 75" in said
    assert "other.txt" not in text


@pytest.mark.parametrize("system", OPTIONS)
def test_a_token_in_place_of_its_name_is_refused_and_not_repeated(launch, system):
    _, said = launch(system, "--secret", "hf_abcDEF", code=2)
    assert "the name of a variable" in said and "hf_abcDEF" not in said


def test_a_skypilot_task_needs_no_checkout_and_no_current_folder(launch, tmp_path):
    text, said = launch("skypilot", "--nodes", 2, "--package", "git+https://example.org/g@main")
    task = yaml.safe_load(text)
    assert "workdir" not in task and "pip install ." not in text
    assert "git+https://example.org/g@main" in task["setup"]
    assert task["secrets"] == {"HF_TOKEN": None}
    assert "sky jobs launch --secret HF_TOKEN first.sky.yaml" in said
    mounts = task["file_mounts"]
    assert mounts.pop("/gptoss-runs") == {"source": "s3://mine", "mode": "MOUNT_CACHED"}
    assert mounts == {
        f"~/gptoss-job/{name}": str(tmp_path / name)
        for name in ("my data/rows.jsonl", "prompts.jsonl")
    }
    recipe = recipe_in(task["run"], tmp_path)
    assert recipe.train.output_dir == "/gptoss-runs/first"
    assert recipe.distributed.num_processes == 16
    assert script_parses(task["run"]) and script_parses(task["setup"])


def test_a_kubernetes_job_keeps_its_run_and_tells_preemption_from_failure(launch, tmp_path):
    text, _ = launch("kubernetes", "--gpus-per-node", 4, "--nodes", 2)
    config, service, job = yaml.safe_load_all(text)
    assert (config["kind"], service["kind"], job["kind"]) == ("ConfigMap", "Service", "Job")
    (tmp_path / "there.yaml").write_text(config["data"]["recipe.yaml"])
    assert load_recipe(tmp_path / "there.yaml").train.output_dir == "/job/runs/first"
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["values"] == [75] and rules[1]["onExitCodes"]["operator"] == "In"
    pod = job["spec"]["template"]["spec"]
    # A policy of failures wants pods that are never restarted in place.
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "work"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["env"][-1]["valueFrom"]["secretKeyRef"]["optional"] is True
    assert pod["subdomain"] == service["metadata"]["name"] == job["metadata"]["name"]
    assert "MASTER_ADDR=first-0.first" in container["command"][-1]
    assert script_parses(container["command"][-1])
    assert "below its top folder: my data/rows.jsonl, prompts.jsonl" in text


def test_one_node_of_kubernetes_needs_no_service_and_an_image_no_pip(launch):
    text, _ = launch("kubernetes", "--gpus-per-node", 1, "--image", "registry/gptoss-tune:1")
    _, job = yaml.safe_load_all(text)
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/gptoss-tune:1"
    assert "pip install" not in container["command"][-1]
    assert "one_gpu.yaml" in container["command"][-1]


def test_a_job_of_hugging_face_is_taken_by_its_command(launch, tmp_path):
    """Run with a command ``hf`` that writes down its words, which the real one then parses."""
    from huggingface_hub.cli.jobs import jobs_cli

    text, said = launch("hf-jobs", "--gpus-per-node", 2, "--time", "12:00:00")
    assert "bash first.hf.sh" in said and script_parses(text)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "hf").write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        "volumes = [w for w in sys.argv if w.endswith(':/inputs')]\n"
        "sent = [os.path.join(d, f) for d, _, fs in os.walk(volumes[0][:-8]) for f in fs]\n"
        f"json.dump([sys.argv[1:], sent], open({str(tmp_path / 'words.json')!r}, 'w'))\n"
    )
    (fake / "hf").chmod(0o755)
    environment = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}"}
    place = tmp_path / "elsewhere"
    place.mkdir()
    subprocess.run(["bash", tmp_path / "first.hf.sh"], env=environment, cwd=place, check=True)
    words, sent = json.loads((tmp_path / "words.json").read_text())
    assert sorted(Path(path).name for path in sent) == ["prompts.jsonl", "rows.jsonl"]
    assert words[:2] == ["jobs", "run"]
    given = jobs_cli.commands["run"].make_context("run", words[2:]).params
    assert given["flavor"] == "h200x2" and given["timeout"] == "43200s"
    assert given["secrets"] == ["HF_TOKEN"] and given["attempts"] == 3
    assert given["volume"][0] == "hf://buckets/me/runs:/gptoss-runs"
    script = given["command"][-1]
    assert script_parses(script)
    assert recipe_in(script, tmp_path).train.output_dir == "/gptoss-runs/first"


FAKE_BOTO3 = """
import json
class Client:
    def __init__(self, name):
        self.name = name
    def __getattr__(self, call):
        def called(*arguments, **settings):
            if "Body" in settings:
                settings["Body"] = settings["Body"].decode()
            with open("calls.jsonl", "a") as file:
                file.write(json.dumps([self.name, call, arguments, settings]) + "\\n")
        return called
client = Client
"""


def test_a_sagemaker_file_uploads_and_asks_for_what_the_api_takes(launch, tmp_path):
    """Run with a ``boto3`` that writes down what it is called with."""
    text, _ = launch("sagemaker")
    ast.parse(text)
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "boto3.py").write_text(FAKE_BOTO3)
    subprocess.run(
        [sys.executable, tmp_path / "first.sagemaker.py", "--role", "arn:aws:iam::1:role/r"],
        env={**os.environ, "PYTHONPATH": str(place)},
        cwd=place,
        check=True,
        capture_output=True,
    )
    calls = [json.loads(line) for line in (place / "calls.jsonl").read_text().splitlines()]
    *uploads, (service, call, _, asked) = calls
    assert (service, call) == ("sagemaker", "create_training_job")
    keys = [given.get("Key") or positional[2] for _, _, positional, given in uploads]
    top = "tuning/first/inputs"
    names = ("job.sh", "recipe.yaml", "my data/rows.jsonl", "prompts.jsonl")
    assert keys == [f"{top}/{name}" for name in names]
    assert script_parses(uploads[0][3]["Body"])
    (tmp_path / "there.yaml").write_text(uploads[1][3]["Body"])
    assert load_recipe(tmp_path / "there.yaml").train.output_dir == "/opt/ml/checkpoints/first"
    assert {"TrainingJobName", "AlgorithmSpecification", "RoleArn", "OutputDataConfig"} < set(asked)
    assert asked["CheckpointConfig"]["LocalPath"] == "/opt/ml/checkpoints"
    stop = asked["StoppingCondition"]
    assert stop["MaxWaitTimeInSeconds"] >= stop["MaxRuntimeInSeconds"] == 86_400
    assert all(len(word) <= 256 for word in asked["AlgorithmSpecification"]["ContainerEntrypoint"])
    assert asked["Environment"] == {"SECRET_ID": "gptoss-tokens", "SECRET_NAMES": "HF_TOKEN"}


@pytest.mark.parametrize(
    "system, arguments, words",
    [
        ("hf-jobs", ("--nodes", 2), "one machine"),
        ("hf-jobs", ("--gpu", "a100-large"), "a100-large has 1 GPU, --gpus-per-node says 8"),
        ("hf-jobs", ("--gpus-per-node", 3), "one of 1, 2, 4, 8"),
        ("hf-jobs", ("--bucket", "s3://mine"), "expected hf://buckets/OWNER/NAME"),
        ("sagemaker", ("--nodes", 2), "share no disk"),
        ("sagemaker", ("--gpu", "H100"), "an instance type with 8 GPUs"),
        ("sagemaker", ("--image", "a b"), "a name such as registry/name:tag"),
        ("sagemaker", ("--time", "soon"), "--time: got 'soon'"),
        ("kubernetes", ("--claim", "My Disk"), "PersistentVolumeClaim"),
        ("kubernetes", ("--spot",), "--spot would have no effect, it is for --skypilot, --sagema"),
        ("skypilot", ("--accelerate", "prompts.jsonl"), "does not have this file"),
        ("skypilot", ("data.train=../rows.jsonl",), "lies elsewhere; copy it here"),
    ],
)
def test_what_would_fail_there_is_refused_here(launch, tmp_path, system, arguments, words):
    (tmp_path.parent / "rows.jsonl").write_text("{}\n")
    _, said = launch(system, *arguments, code=2)
    assert words in " ".join(said.split())


def test_a_recipe_from_elsewhere_and_overrides_travel_in_the_file(launch, tmp_path):
    """The recipe stands in the file, so it may lie anywhere, and its overrides are in it."""
    place = tmp_path.parent / "a recipe elsewhere.yaml"
    place.write_text((tmp_path / "recipe.yaml").read_text())
    text, _ = launch("skypilot", "train.seed=7", "train.learning_rate=1e-5", recipe=str(place))
    recipe = recipe_in(yaml.safe_load(text)["run"], tmp_path)
    assert recipe.train.seed == 7 and recipe.train.learning_rate == 1e-5


def test_a_shipped_recipe_reads_the_shipped_data_there(launch, tmp_path):
    """By its name, from a folder that is no checkout; the data have another place there."""
    words = ("--gpus-per-node", 1, "--name", "first")
    text, said = launch("skypilot", *words, recipe="gpt-oss-20b/qlora")
    task = yaml.safe_load(text)
    sources = recipe_in(task["run"], tmp_path).data.train
    assert sources[0].path == "gptoss-data/conversations/reasoning.jsonl"
    assert 'ln -sfn "$(python -c' in task["run"] and " gptoss-data ||" in task["run"]
    assert list(task["file_mounts"]) == ["/gptoss-runs"] and script_parses(task["run"])
    mixed = ("data.eval=null", "data.train=[my data/rows.jsonl]", "--out", "mixed")
    _, said = launch("skypilot", *words, *mixed, recipe="gpt-oss-20b/qlora")
    assert said.count("lays off") == 1
    assert "gptoss-data" not in (tmp_path / "mixed").read_text()


def test_times_and_names_as_other_systems_write_them():
    times = ("90", "12:00:00", "30:15", "2-0", "1-02:03:04")
    assert [seconds_of(time) for time in times] == [5400, 43_200, 1815, 172_800, 93_784]
    assert label_name("My_Run.v2!") == "my-run-v2" and label_name("...") == "gptoss-tune"


def test_launch_brings_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['gptoss-tune', 'launch', 'recipes/gpt-oss-20b/qlora.yaml', "
        "'--kubernetes', '--out', '-']\n"
        "from gptoss_tune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as left:\n    assert not left.code, left.code\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
