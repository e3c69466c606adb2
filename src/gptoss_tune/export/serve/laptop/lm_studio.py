"""LM Studio: a script that puts the files where it looks for models.

It shows what lies at ``models/PUBLISHER/MODEL/FILE.gguf`` below its folder, ``~/.lmstudio`` unless
it was moved (lmstudio.ai/docs, "Import models"). Links save a second copy of the weights; where a
file system has none, the files are copied. No ``model.yaml`` is written: it describes a model of
LM Studio's own hub, and one that lies here needs none.
"""

from __future__ import annotations

import shlex

from gptoss_tune.export.serve.laptop.model import LaptopModel

PUBLISHER = "gptoss-tune"
"""Folder that the models stand under; LM Studio shows it as who published them."""


def lm_studio(model: LaptopModel) -> dict[str, str]:
    """Return ``place.sh``."""
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
    return {"place.sh": "\n".join(lines) + "\n"}
