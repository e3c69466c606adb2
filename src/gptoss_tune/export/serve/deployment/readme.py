"""README.md of a bundle: what to set, how to start, to ask and to verify, what was checked."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gptoss_tune.export.serve.deployment.adapters import Adapters
from gptoss_tune.export.serve.deployment.images import Image
from gptoss_tune.export.serve.deployment.kubernetes import COPY, SERVER, VOLUME
from gptoss_tune.export.serve.deployment.places import PORT

NO_API = "triton-server"


@dataclass(frozen=True)
class Described:
    """A bundle, as its README tells of it.

    Attributes:
        target: What it is for.
        name: The model's name.
        model: The model's folder, or its name on the Hub.
        asked_as: The name that clients ask for.
        context: Longest prompt and answer, in tokens.
        gpus: GPUs that share the model.
        key: The variable of the key, or None for a server that knows none.
        open_to_others: Whether ``serve.sh`` listens for others too.
        url: Where it is asked from this machine.
        image: The image asked for instead of the pinned one, or None.
        pinned: The pinned image, or None where there is none.
        loading_s: Seconds that a probe waits for the model.
        sizes: What was computed of memory, a sentence each.
        files: Names of the bundle's files.
        adapters: What is served beside a base, or None.
    """

    target: str
    name: str
    model: str
    asked_as: str
    context: int
    gpus: int
    key: str | None
    open_to_others: bool
    url: str
    image: str | None
    pinned: Image | None
    loading_s: int
    sizes: Sequence[str]
    files: Collection[str]
    adapters: Adapters | None = None


def readme(bundle: Described) -> str:
    """Return a bundle's README.md."""
    parts = [
        f"# {bundle.name} on {bundle.target}\n\nModel: `{bundle.model}`{_limits(bundle)}.\n",
        _section("Set", _to_set(bundle)),
        _section("Start", _start(bundle)),
        _section("Ask", _ask(bundle)),
        _section("Verify", _verify(bundle)),
        _section("Sizes", _sizes(bundle)),
        _section("Checked", _checked(bundle)),
    ]
    return "\n".join(part for part in parts if part)


def _limits(bundle: Described) -> str:
    if bundle.target == "transformers":
        return ""
    gpus = f"{bundle.gpus} GPU{'s' if bundle.gpus > 1 else ''}"
    return f", up to {bundle.context} tokens, on {gpus}"


def _section(title: str, lines: list[str]) -> str:
    return f"## {title}\n\n" + "\n".join(lines) + "\n" if lines else ""


def _code(*lines: str) -> str:
    return "\n".join(("```bash", *lines, "```"))


def _to_set(bundle: Described) -> list[str]:
    lines = []
    key = bundle.key
    if key:
        where = (
            "`serve.sh` on this machine's own address needs none. "
            if bundle.target != "nim"
            else ""
        )
        asks = "" if bundle.open_to_others else where
        lines.append(
            f"- `{key}`: the key that clients must send; containers do not start without it. {asks}"
            f"`export {key}=$(openssl rand -hex 32)` makes one."
        )
    return lines


def _start(bundle: Described) -> list[str]:
    minutes = bundle.loading_s // 60
    lines = []
    if "serve.sh" in bundle.files:
        lines += ["With the server installed on this machine:", "", _code("./serve.sh"), ""]
    if "compose.yaml" in bundle.files:
        lines += [
            "With Docker and the NVIDIA container toolkit:",
            "",
            _code("docker compose up -d --wait", "docker compose logs -f"),
            "",
        ]
    if SERVER in bundle.files:
        lines += _kubernetes(bundle)
    if bundle.target == "azure-ml":
        lines += [_code("./deploy.sh"), ""]
    if bundle.target != "transformers":
        lines.append(f"Loading may take {minutes} minutes before a probe gives it up.")
    return lines


def _kubernetes(bundle: Described) -> list[str]:
    name = bundle.name.lower()
    key = bundle.key
    secret = [  # printf is the shell's own: no list of processes shows the key
        f'printf %s "${key}" | kubectl create secret generic {name}-key \\',
        "  --from-file=api-key=/dev/stdin",
    ]
    return [
        "On Kubernetes, with GPU nodes and a default storage class. The script makes the volume of "
        f"`{VOLUME}`, copies the model into it and compares every byte:",
        "",
        _code(
            f"./{COPY}",
            *(secret if key else []),
            f"kubectl apply -f {SERVER}",
            f"kubectl rollout status deployment/{name} --timeout=1h",
            f"kubectl port-forward {'service' if key else 'deployment'}/{name} {PORT}:{PORT}",
        ),
        "",
        f"The port-forward answers at `http://localhost:{PORT}`. After another copy, "
        f"`kubectl rollout restart deployment/{name}` makes the server read it.",
        "",
        (
            "Pods of the namespace reach it at "
            f"`http://{name}:{PORT}` with the key; nothing outside the cluster does."
            if key
            else "This server knows no key: it listens inside its pod alone, and the port-forward "
            "is the only way to it. Put a proxy that checks keys into the pod to open it."
        ),
        "",
    ]


def _ask(bundle: Described) -> list[str]:
    if bundle.target == "azure-ml":
        shown = f"az ml online-endpoint show --name {bundle.name} --query scoring_uri -o tsv"
        keys = f"az ml online-endpoint get-credentials --name {bundle.name} --query primaryKey"
        return [
            _code(
                f"URL=$({shown})",
                f"export KEY=$({keys} -o tsv)",
                *_curl(bundle.name, "${URL%/}", "KEY"),
            )
        ]
    if bundle.target == NO_API:
        return [
            "The backend takes a text and continues it, so whoever asks renders the conversation "
            "in the Harmony format (`gptoss-tune` and `openai-harmony` do):",
            "",
            _code(
                f"curl http://localhost:{PORT}/v2/models/{bundle.name}/generate "
                "-H 'Content-Type: application/json' \\",
                '  -d \'{"text_input": "<|start|>user<|message|>Hello<|end|><|start|>assistant", '
                '"parameters": {"max_tokens": 200}}\'',
            ),
        ]
    key = bundle.key
    return [_code(*_curl(bundle.asked_as, bundle.url, key)), *_names(bundle)]


def _names(bundle: Described) -> list[str]:
    """Return the names that clients ask for, and what adapters take on a GPU."""
    adapters = bundle.adapters
    if adapters is None:
        return []
    slots = sorted({n for n in (1, 2, 4, 8) if n <= len(adapters.ranks)} | {len(adapters.ranks)})
    return [
        "",
        "| model in the request | answers | trained at rank |",
        "|---|---|--:|",
        f"| `{bundle.name}` | the base, without an adapter | |",
        *(f"| `{name}` | that adapter | {rank} |" for name, rank in adapters.ranks.items()),
        "",
        f"All are padded to rank {adapters.rank}. `--max-loras` ({adapters.slots}) adapters are on "
        "a GPU at a time, the rest wait in the machine's memory:",
        "",
        "| `--max-loras` | on each GPU, beside the base |",
        "|--:|--:|",
        *(f"| {n} | {n * adapters.slot_bytes / 1e9:.2f} GB |" for n in slots),
    ]


def _curl(model: str, url: str, key: str | None) -> list[str]:
    header = ["  -H @- \\"] if key else []  # an argument would show the key in lists of processes
    sent = f"printf 'Authorization: Bearer %s' \"${key}\" | " if key else ""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return [
        f"{sent}curl {url}/v1/chat/completions \\",
        *header,
        "  -H 'Content-Type: application/json' \\",
        f"  -d '{body}'",
    ]


def _verify(bundle: Described) -> list[str]:
    if bundle.target == NO_API:
        return ["`gptoss-tune verify --served` asks the OpenAI API, which this backend has not."]
    if bundle.target == "azure-ml":
        url, key = '"${URL%/}"', "KEY"
    else:
        url, key = bundle.url, bundle.key
    if bundle.adapters:
        return [
            "Asks the server for each name and judges whether the base answers with that adapter, "
            "and under its own name with none:",
            "",
            _code(f"gptoss-tune verify --bundle . --served {url}"),
        ]
    subject = bundle.model
    asked = (
        f"gptoss-tune verify {shlex.quote(subject)} --adapter RUN --served {url} "
        f"--served-name {shlex.quote(bundle.asked_as)}"
    )
    commands = [f"{asked} --api-key-env {key}" if key else asked]
    if key and "serve.sh" in bundle.files and not bundle.open_to_others:
        commands = ["# serve.sh, which asks for no key:", asked, "# a container or pod:", *commands]
    return [
        "Asks the server 24 questions and judges its answers by the model's own; RUN is the run "
        "that was merged:",
        "",
        _code(*commands),
    ]


def _sizes(bundle: Described) -> list[str]:
    lines = [f"- {line[0].upper()}{line[1:]}." for line in bundle.sizes]
    if lines:
        lines.append(
            "- Limits of the machine's memory and the time to load are bounds, not measurements: "
            "adjust them to what you see."
        )
    return lines


def _checked(bundle: Described) -> list[str]:
    image = bundle.pinned
    lines = []
    if bundle.image:
        lines.append(f"- Image: `{bundle.image}`, as asked; its flags were not checked.")
    elif image:
        lines += [
            f"- Image: `{image.reference}` ({image.server}), known from {image.source}. "
            "A digest pins it further: `docker buildx imagetools inspect "
            f"{image.reference}`, then `--image NAME@sha256:...`.",
            f"- {image.flags[0].upper()}{image.flags[1:]}.",
        ]
        if image.driver:
            lines.append(f"- {image.driver}.")
    if bundle.target == "transformers":
        lines.append("- Every flag was checked against the installed command.")
    if bundle.target in ("vllm", "nim"):
        lines.append(
            "- vLLM's key protects the paths below `/v1` alone; `/invocations` answers without it. "
            + (
                "`only_v1.py` answers 404 to all but `/v1` and the probes."
                if bundle.target == "vllm"
                else "Let only a proxy reach this server."
            )
        )
    if bundle.target == "sglang":
        lines.append(
            "- SGLang takes its key as an argument alone, no variable: whoever may list the "
            "processes of the machine, or look at the container or pod, sees it."
        )
    if image and image.as_root:
        lines.append("- The image runs as root inside its container; no other user was tried.")
    return lines
