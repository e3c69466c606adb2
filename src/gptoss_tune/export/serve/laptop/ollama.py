r"""Ollama: a Modelfile with the files, harmony's template and the samplers of gpt-oss.

What Ollama does with gpt-oss, read in its source (server/routes.go of 0.20.5 and 0.30.11): where
the family of a model is ``gpt-oss``, which it takes from the file's ``general.architecture``, and
its TEMPLATE holds ``<|start|>`` and ``<|end|>``, Ollama renders that template and reads the answer
by its own harmony parser, which tells thoughts and calls apart. Without such a template it is left
to what ``ollama create`` guesses, so one is written. It is a template of Go; the tests render it by
Go's own engine where ``go`` is installed, and hold it against harmony. Ollama itself was not run.
"""

from __future__ import annotations

from typing import Final

from gptoss_tune.errors import CheckpointError
from gptoss_tune.export.serve.deployment.places import TO_SCRIPT
from gptoss_tune.export.serve.laptop.model import LaptopModel
from gptoss_tune.export.serve.laptop.readme import Told, code, laptop_readme

_PIECES: Final = (
    "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n",
    "Knowledge cutoff: 2024-06\nCurrent date: {{ currentDate }}\n\n",
    "Reasoning: {{ if .ThinkLevel }}{{ .ThinkLevel }}{{ else }}@EFFORT@{{ end }}\n\n",
    "# Valid channels: analysis, commentary, final. ",
    "Channel must be included for every message.",
    "{{ if .Tools }}\nCalls to these tools must go to the commentary channel: ",
    "'functions'.{{ end }}",
    "<|end|>",
    # The system message of a chat is harmony's developer message.
    "{{ if or .System .Tools }}<|start|>developer<|message|>",
    "{{ if .System }}# Instructions\n\n{{ .System }}{{ end }}",
    "{{ if and .System .Tools }}\n\n{{ end }}",
    "{{ if .Tools }}# Tools\n\n## functions\n\nnamespace functions {\n\n",
    "{{ range .Tools }}{{ $required := .Function.Parameters.Required }}",
    "{{ if .Function.Description }}// {{ .Function.Description }}\n{{ end }}",
    "type {{ .Function.Name }} = (",
    "{{ if .Function.Parameters.Properties }}_: {\n",
    "{{ range $name, $property := .Function.Parameters.Properties }}",
    "{{ if $property.Description }}// {{ $property.Description }}\n{{ end }}",
    "{{ $name }}{{ $optional := true }}",
    "{{ range $required }}{{ if eq . $name }}{{ $optional = false }}{{ end }}{{ end }}",
    "{{ if $optional }}?{{ end }}: ",
    "{{ if $property.Enum }}",
    '{{ range $n, $value := $property.Enum }}{{ if $n }} | {{ end }}"{{ $value }}"{{ end }}',
    "{{ else }}{{ range $n, $type := $property.Type }}{{ if $n }} | {{ end }}",
    '{{ if eq $type "integer" }}number{{ else if eq $type "array" }}Array<any>',
    '{{ else if eq $type "object" }}object{{ else }}{{ $type }}{{ end }}{{ end }}{{ end }},\n',
    "{{ end }}}{{ end }}) => any;\n\n{{ end }}",
    "} // namespace functions{{ end }}<|end|>{{ end }}",
    # A thought is told again only while its turn goes on: behind the last question.
    "{{ $asked := -1 }}{{ range $n, $message := .Messages }}",
    '{{ if eq $message.Role "user" }}{{ $asked = $n }}{{ end }}{{ end }}',
    '{{ $called := "" }}{{ range $n, $message := .Messages }}',
    '{{ if eq $message.Role "user" }}<|start|>user<|message|>{{ $message.Content }}<|end|>',
    '{{ else if eq $message.Role "assistant" }}',
    "{{ if and $message.Thinking (gt $n $asked) }}",
    "<|start|>assistant<|channel|>analysis<|message|>{{ $message.Thinking }}<|end|>{{ end }}",
    "{{ if $message.ToolCalls }}",
    "{{ if $message.Content }}",
    "<|start|>assistant<|channel|>commentary<|message|>{{ $message.Content }}<|end|>{{ end }}",
    "{{ range $message.ToolCalls }}{{ $called = .Function.Name }}",
    "<|start|>assistant to=functions.{{ .Function.Name }}<|channel|>commentary ",
    "<|constrain|>json<|message|>{{ .Function.Arguments }}<|call|>{{ end }}",
    "{{ else if $message.Content }}",
    "<|start|>assistant<|channel|>final<|message|>{{ $message.Content }}<|end|>{{ end }}",
    '{{ else if eq $message.Role "tool" }}',
    "<|start|>functions.{{ if $message.ToolName }}{{ $message.ToolName }}{{ else }}{{ $called }}",
    "{{ end }} to=assistant<|channel|>commentary<|message|>{{ $message.Content }}<|end|>{{ end }}",
    "{{ end }}<|start|>assistant",
)
NOT_RUN: Final = "not run with Ollama"
TOOLS: Final = "types of nested tool parameters are told as 'object' and 'array'"
_QUOTES: Final = '"""'


def template_text(effort: str) -> str:
    """Return harmony as a template of Ollama; ``effort`` holds where a request says none."""
    return "".join(_PIECES).replace("@EFFORT@", effort)


def ollama(model: LaptopModel) -> dict[str, str]:
    """Return ``Modelfile``, ``create.sh`` and ``README.md``.

    Raises:
        CheckpointError: A path or the instructions hold what a Modelfile cannot.
    """
    for told in (*map(str, model.files), model.instructions or ""):
        if _QUOTES in told or ("\n" in told and told != model.instructions):
            raise CheckpointError(
                f"{told[:60]!a}: a Modelfile cannot hold this; use no line breaks in paths and no "
                f"{_QUOTES} in instructions"
            )
    lines = [f"FROM {file}" for file in model.files]
    lines.append(f"TEMPLATE {_QUOTES}{template_text(model.effort)}{_QUOTES}")
    if model.instructions:
        lines.append(f"SYSTEM {_QUOTES}{model.instructions}{_QUOTES}")
    # Ollama's own samplers leave tokens out; gpt-oss is sampled from all of them.
    parameters = {"num_ctx": model.context, "temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}
    lines += [f"PARAMETER {name} {value}" for name, value in parameters.items()]
    create = f"#!/bin/sh\nset -e\n{TO_SCRIPT}\nollama create {model.name} -f Modelfile\n"
    return {
        "Modelfile": "\n".join(lines) + "\n",
        "create.sh": create + f"echo 'ollama run {model.name}'\n",
        "README.md": _readme(model),
    }


def _readme(model: LaptopModel) -> str:
    return laptop_readme(
        model,
        Told(
            "Ollama",
            [
                "context, samplers and instructions stand in `Modelfile`; after a change run "
                "`create.sh` again",
                f"`create.sh` copies {model.nbytes / 1e9:.1f} GB into Ollama's store",
            ],
            ["With Ollama running:", "", code("./create.sh", f"ollama run {model.name}")],
            "http://localhost:11434",
            model.name,
            None,
            [NOT_RUN, TOOLS],
        ),
    )
