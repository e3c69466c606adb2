"""SageMaker: a Python file that uploads the recipe and its files and creates the training job.

It talks to the API through boto3 alone: SageMaker's own SDK has changed its classes with each major
version, the API's request has not. What a container gets as an environment variable can be read by
whoever may describe the job, so tokens are read from Secrets Manager by the container itself.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from gptoss_tune.errors import RecipeError
from gptoss_tune.workflows.cluster.job import (
    Job,
    Luggage,
    job_name,
    label_name,
    node_script,
    refuse_other_file,
    seconds_of,
)

INSTANCES = {1: "ml.p5.4xlarge", 4: "ml.g6e.24xlarge", 8: "ml.p5.48xlarge"}
"""The instance that is taken for a number of GPUs."""
_CHECKPOINTS = "/opt/ml/checkpoints"
_INPUTS = "/opt/ml/input/data/inputs"
_BUCKET = re.compile(r"s3://[\w.-]+(/[\w./-]+)?")
_INSTANCE = re.compile(r"ml\.[a-z0-9-]+\.[a-z0-9]+")

# Printed as assignments for the shell; a name that the job did not ask for is left out.
_TOKENS = """python -m pip install --quiet boto3 || exit 3
tokens=$(python - <<'END_OF_TOKENS'
import json, os, shlex
import boto3
secret = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["SECRET_ID"])
for name, value in json.loads(secret["SecretString"]).items():
    if name in os.environ["SECRET_NAMES"].split():
        print(f"export {name}={shlex.quote(value)}")
END_OF_TOKENS
) || exit 3
eval "$tokens\""""


def run_folder(output_dir: str) -> str:
    """Return where the run lies; SageMaker copies it to the bucket as it grows, and back."""
    return f"{_CHECKPOINTS}/{job_name(PurePosixPath(output_dir).name)}"


def sagemaker_file(
    job: Job,
    luggage: Luggage,
    *,
    instance: str | None,
    bucket: str | None,
    time: str,
    spot: bool,
) -> str:
    """Return a Python file that creates the training job when it is run.

    Args:
        job: What is run, on one machine.
        luggage: The recipe, whose run lies in ``run_folder``, and what it needs; its image is one
            in ECR that has the package.
        instance: Instance type; ``None``: by the number of GPUs.
        bucket: ``s3://BUCKET/PREFIX`` for inputs, checkpoints and the result.
        time: Longest time, as Slurm writes it.
        spot: Managed spot training.

    Raises:
        RecipeError: No image, bucket or instance of that kind.
    """
    if luggage.image is None:
        raise RecipeError(
            "--image: SageMaker starts images of ECR; build the Dockerfile, push it, name it"
        )
    if bucket is None or not _BUCKET.fullmatch(bucket):
        got = "none" if bucket is None else repr(bucket)
        raise RecipeError(f"--bucket: got {got}, expected a URL such as s3://mine/gptoss")
    instance = instance or INSTANCES.get(job.gpus_per_node)
    if instance is None or not _INSTANCE.fullmatch(instance):
        raise RecipeError(
            f"--gpu: got {instance!r}, expected an instance type with {job.gpus_per_node} GPUs, "
            "such as ml.p5.48xlarge"
        )
    if job.nodes > 1:
        raise RecipeError(
            f"--nodes {job.nodes}: the machines of a SageMaker job share no disk, and all of them "
            "read a run's checkpoints; take one machine, or --kubernetes or --slurm"
        )
    refuse_other_file(job)
    lines = job_script(job, luggage).splitlines()
    folder, _, prefix = bucket.removeprefix("s3://").partition("/")
    return _FILE.format(
        name=label_name(job.name),
        image=luggage.image,
        instance=instance,
        bucket=folder,
        prefix="/".join(part for part in (prefix.strip("/"), label_name(job.name)) if part),
        seconds=seconds_of(time),
        spot=spot,
        secrets=" ".join(luggage.secrets),
        folder=str(luggage.folder),
        files=list(luggage.files),
        recipe=_listed(luggage.recipe.splitlines()),
        script=_listed(lines),
        inputs=_INPUTS,
        checkpoints=_CHECKPOINTS,
    )


def job_script(job: Job, luggage: Luggage) -> str:
    """Return the shell script that the container runs."""
    return node_script(
        job,
        rank="0",
        before=[
            f"mkdir -p /tmp/gptoss-job && cp -R {_INPUTS}/. /tmp/gptoss-job || exit 3",
            "cd /tmp/gptoss-job || exit 3",
            *luggage.link_data(),
            *(_TOKENS.splitlines() if luggage.secrets else ()),
        ],
        master=[],
    )


def _listed(lines: list[str]) -> str:
    """Return lines as the inside of a Python list, one below the other."""
    return "".join(f"    {line!r},\n" for line in lines)


_FILE = '''"""Starts the training job {name} on SageMaker; written by gptoss-tune launch.

python FILE --role arn:aws:iam::ACCOUNT:role/NAME, from any folder. Needs boto3 and credentials of
the account. The run, its adapter included, is copied to the bucket as it grows; a job that was
stopped or ran out of time is started again by the same command, and goes on from the newest
checkpoint there.
"""

import argparse
import time
from pathlib import Path

import boto3

NAME = {name!r}
IMAGE = {image!r}
INSTANCE = {instance!r}
BUCKET = {bucket!r}
PREFIX = {prefix!r}
SECONDS = {seconds!r}
SPOT = {spot!r}
SECRETS = {secrets!r}
FOLDER = Path({folder!r})
FILES = {files!r}
RECIPE = [
{recipe}]
SCRIPT = [
{script}]


def upload():
    """Put the script, the recipe and the files that it reads into the bucket."""
    s3 = boto3.client("s3")
    for name, lines in (("job.sh", SCRIPT), ("recipe.yaml", RECIPE)):
        body = "\\n".join([*lines, ""]).encode()
        s3.put_object(Bucket=BUCKET, Key=f"{{PREFIX}}/inputs/{{name}}", Body=body)
    for name in FILES:
        place = FOLDER / name
        inside = sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]
        for path in inside:
            key = f"{{PREFIX}}/inputs/{{path.relative_to(FOLDER).as_posix()}}"
            s3.upload_file(str(path), BUCKET, key)


def request(role, secret):
    """Return what the API is asked for."""
    stop = {{"MaxRuntimeInSeconds": SECONDS}}
    if SPOT:
        stop["MaxWaitTimeInSeconds"] = 2 * SECONDS
    # The name of a secret in Secrets Manager; the container reads it with the role's rights.
    tokens = {{"SECRET_ID": secret, "SECRET_NAMES": SECRETS}} if SECRETS else {{}}
    source = {{
        "S3DataType": "S3Prefix",
        "S3Uri": f"s3://{{BUCKET}}/{{PREFIX}}/inputs/",
        "S3DataDistributionType": "FullyReplicated",
    }}
    return {{
        "TrainingJobName": f"{{NAME}}-{{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}}",
        "RoleArn": role,
        "AlgorithmSpecification": {{
            "TrainingImage": IMAGE,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["bash", "{inputs}/job.sh"],
        }},
        "InputDataConfig": [{{"ChannelName": "inputs", "DataSource": {{"S3DataSource": source}}}}],
        "OutputDataConfig": {{"S3OutputPath": f"s3://{{BUCKET}}/{{PREFIX}}/output"}},
        "CheckpointConfig": {{
            "S3Uri": f"s3://{{BUCKET}}/{{PREFIX}}/checkpoints",
            "LocalPath": "{checkpoints}",
        }},
        "ResourceConfig": {{"InstanceType": INSTANCE, "InstanceCount": 1, "VolumeSizeInGB": 200}},
        "StoppingCondition": stop,
        "EnableManagedSpotTraining": SPOT,
        "RetryStrategy": {{"MaximumRetryAttempts": 3}},
        "Environment": tokens,
    }}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start the training job.")
    parser.add_argument("--role", required=True, help="ARN of the role that the job has")
    parser.add_argument(
        "--secret", default="gptoss-tokens", help="in Secrets Manager, a JSON of names to tokens"
    )
    given = parser.parse_args()
    upload()
    asked = request(given.role, given.secret)
    boto3.client("sagemaker").create_training_job(**asked)
    print(asked["TrainingJobName"])
'''
