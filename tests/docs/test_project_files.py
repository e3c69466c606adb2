"""Files that other programs read: image, citation, issue forms, and the script of a release."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gptoss_tune import __version__

ROOT = Path(__file__).resolve().parents[2]


def instructions(text):
    """Return the instructions of a Dockerfile, continued lines joined, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [line.split(None, 1) for line in joined.splitlines() if line.strip()]


def test_the_image_is_pinned_and_made_of_what_is_there():
    made = instructions((ROOT / "Dockerfile").read_text())
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "ARG", "CMD"}
    assert {word for word, _ in made} <= known
    for word, rest in made:
        if word == "FROM":
            assert re.match(r"[\w./-]+:\d+\.\d+[\w.-]*( AS \w+)?$", rest), rest
        if word == "COPY" and "--from" not in rest:
            *sources, _ = rest.split()
            assert all((ROOT / source).exists() for source in sources), rest
        if word == "RUN":
            assert subprocess.run(["bash", "-n", "-c", rest], check=False).returncode == 0, rest
        assert "TOKEN" not in rest
    # What a job file's shell needs in it.
    installed = next(rest for word, rest in made if word == "RUN" and "apt-get" in rest)
    assert {"gcc", "procps", "python3-dev"} <= set(installed.split())


def test_the_image_gets_nothing_but_its_sources():
    kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    assert "*" in kept
    made = instructions((ROOT / "Dockerfile").read_text())
    copied = [r.split()[:-1] for word, r in made if word == "COPY" and "--from" not in r]
    assert {f"!{name}" for names in copied for name in names} == {
        line for line in kept if line.startswith("!")
    }


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == __version__
    assert {"message", "title", "authors", "type", "license"} <= set(citation)


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_issue_forms_ask_for_the_version(name):
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE" / name).read_text())
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) and "version" in ids
    assert all(field["attributes"]["label"] for field in fields)
    if name == "bug.yml":
        record = next(field for field in fields if field["id"] == "environment")
        assert "run.json" in record["attributes"]["description"]


@pytest.fixture
def checkout(tmp_path):
    """A repository with the files that a release looks at, and a Python that builds two files."""
    place = tmp_path / "checkout"
    for name in ("docs/release.sh", "CITATION.cff", "Dockerfile", "pyproject.toml"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    package = place / "src/gptoss_tune"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f'__version__ = "{__version__}"\n')
    (place / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} - 2026-11-28\n")
    (place / ".gitignore").write_text("dist/\n")
    python = tmp_path / "python"
    files = [f"gptoss_tune-{__version__}-py3-none-any.whl", f"gptoss_tune-{__version__}.tar.gz"]
    python.write_text(
        '#!/bin/bash\nif [ "$2" = build ]; then mkdir -p dist; '
        + "; ".join(f"echo x > dist/{file}" for file in files)
        + "; fi\n"
    )
    python.chmod(0o755)
    git(place, "init", "--quiet")
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--message", "x")
    return place, python


def git(place, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *who, *words], cwd=place, check=True, capture_output=True, text=True
    ).stdout


def release(place, python):
    environment = {
        **{"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        **{
            f"GIT_{role}_{what}": "a@b"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }
    return subprocess.run(
        ["bash", "docs/release.sh"], cwd=place, env=environment, capture_output=True, text=True
    )


def test_a_release_builds_and_tags_once(checkout):
    place, python = checkout
    done = release(place, python)
    assert done.returncode == 0, done.stderr
    assert git(place, "tag").split() == [f"v{__version__}"]
    assert f"git push origin v{__version__}" in done.stdout
    again = release(place, python)
    assert again.returncode == 2 and "exists; raise the version" in again.stderr


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("CHANGELOG.md", "## Unreleased\n", "CHANGELOG.md has no section"),
        ("CITATION.cff", "version: 9.9.9\n", "CITATION.cff has another version"),
        ("src/gptoss_tune/__init__.py", '__version__ = "9.9.9"\n', "has another version"),
        ("new.txt", "x\n", "the tree is not clean"),
    ],
)
def test_what_is_no_version_is_not_released(checkout, file, text, words):
    place, python = checkout
    (place / file).write_text(text)
    if file != "new.txt":
        git(place, "add", "--all")
        git(place, "commit", "--quiet", "--message", "y")
    ended = release(place, python)
    assert ended.returncode == 2 and words in ended.stderr
    assert not git(place, "tag")
