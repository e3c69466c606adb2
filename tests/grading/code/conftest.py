import subprocess
import sys
import textwrap

import pytest

from gptoss_tune.grading.answer import Given
from gptoss_tune.grading.code.protection import protection
from gptoss_tune.grading.code.sandbox import Job, Limits, run
from gptoss_tune.grading.rows import read_grader


@pytest.fixture(scope="session", autouse=True)
def _a_machine_that_holds_back():
    if not protection().sufficient:
        pytest.skip(protection().lines()[0])


@pytest.fixture(scope="session")
def attempt():
    """Run code in the sandbox with limits; give the outcome."""

    def attempted(code, *, without=(), landlock=None, **limits):
        limits.setdefault("timeout_s", 20)
        job = Job(textwrap.dedent(code), limits=Limits(**limits))
        return run(job, without=without, landlock=landlock)

    return attempted


@pytest.fixture(scope="session")
def plainly():
    """Run code as any program, without a sandbox; give the process."""

    def started(code, **options):
        command = [sys.executable, "-I", "-c", textwrap.dedent(code)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)

    return started


@pytest.fixture(scope="session")
def verdict():
    """Judge a text by a row's tests."""

    def judged(row, text):
        grader = read_grader({"grader": "code", **row}, "tasks.jsonl:1")
        return grader.judge(Given(text), grader.seconds)

    return judged
