"""LM Studio: a script that puts the files where it looks for models.

It shows what lies at ``models/PUBLISHER/MODEL/FILE.gguf`` below its folder, ``~/.lmstudio`` unless
it was moved (lmstudio.ai/docs, "Import models"). Links save a second copy of the weights; where a
file system has none, the files are copied. No ``model.yaml`` is written: it describes a model of
LM Studio's own hub, and one that lies here needs none.
"""

from __future__ import annotations

import shlex

from gptoss_tune.export.serve.laptop.model import LaptopModel
from gptoss_tune.export.serve.laptop.readme import Told, code, laptop_readme

NOT_RUN = "not run with LM Studio"
PUBLISHER = "gptoss-tune"
"""Folder that the models stand under; LM Studio shows it as who published them."""


def lm_studio(model: LaptopModel) -> dict[str, str]:
    """Return ``place.sh`` and ``README.md``."""
    lines = [
        "#!/bin/sh",
        "set -e",
        'MODELS="${LM_STUDIO_MODELS:-$HOME/.lmstudio/models}"',
        f'PLACE="$MODELS/{PUBLISHER}/{model.name}"',
        'mkdir -p "$PLACE"',
    ]
    for file in model.files:
        source, name = shlex.quote(str(file)), shlex.quote(file.name)
        there = f'echo "$PLACE"/{name} is there already >&2; exit 1'
        lines += [
            f'if [ -e "$PLACE"/{name} ]; then {there}; fi',
            f'ln -s {source} "$PLACE"/{name} || cp {source} "$PLACE"/{name}',
        ]
    lines.append('echo "$PLACE"')
    return {"place.sh": "\n".join(lines) + "\n", "README.md": _readme(model)}


def _readme(model: LaptopModel) -> str:
    return laptop_readme(
        model,
        Told(
            "LM Studio",
            [
                "`LM_STUDIO_MODELS`: the folder of its models, if that is not `~/.lmstudio/models`",
                f"in the app: the context of {model.context} tokens, the reasoning effort "
                f"`{model.effort}`"
                + (", at which its run was trained" if model.trained else "")
                + ", and temperature 1, top P 1, top K 0, min P 0",
            ],
            [
                code("./place.sh"),
                "",
                f"Then load `{PUBLISHER}/{model.name}` in the app, and start its server there to "
                "ask it from programs.",
            ],
            "http://localhost:1234",
            model.name,
            None,
            [NOT_RUN, "`GET /v1/models` of its server tells the name that it gives the model"],
        ),
    )
