"""The README of a bundle of adapters: how it starts, what a client asks for, what it takes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from gptoss_tune.export.serve.lora_memory import VLLM
from gptoss_tune.export.serve.served import PORT, Served


def readme(
    served: Served, ranks: Mapping[str, int], rank: int, slot_bytes: int, notes: Sequence[str]
) -> str:
    """Return the text of ``README.md``.

    Args:
        served: The base.
        ranks: What the adapters were trained at, by name.
        rank: What all are padded to.
        slot_bytes: Of one slot, on each GPU.
        notes: Sentences that a user has to know.
    """
    first = next(iter(ranks))
    host = "localhost" if served.host in ("0.0.0.0", "::") else served.host
    key = ["-H", '"Authorization: Bearer $VLLM_API_KEY"'] if served.open_to_others else []
    asked = {"model": first, "messages": [{"role": "user", "content": "Hello"}]}
    rows = [f"| `{name}` | adapter | {trained} |" for name, trained in ranks.items()]
    slots = sorted({1, 2, 4, 8, len(ranks)})
    lines = [
        f"# {len(ranks)} adapters beside {served.name}",
        "",
        "```bash",
        "./serve.sh                    # vLLM on this machine, or: docker compose up",
        "```",
        "",
        f"The flags and the layout of the files are those of vLLM {VLLM}.",
        "",
        "| ask for the model | and get | trained at rank |",
        "|---|---|--:|",
        f"| `{served.name}` | the base, with no adapter | |",
        *rows,
        "",
        "```bash",
        " ".join(["curl", f"http://{host}:{PORT}/v1/chat/completions", *key, "\\"]),
        f"  -H 'Content-Type: application/json' -d '{json.dumps(asked)}'",
        "```",
        "",
        f"All are padded to rank {rank}. vLLM holds `--max-loras` adapters on the GPU at a time, "
        "the rest in the machine's memory:",
        "",
        f"| `--max-loras` | on each of {served.gpus} GPUs, beside the base |",
        "|--:|--:|",
        *(f"| {n} | {n * slot_bytes / 1e9:.2f} GB |" for n in slots),
        "",
        *(f"- {note[0].upper()}{note[1:]}." for note in notes),
        "",
        "Ask the running server whether each name answers with its adapter:",
        "",
        "```bash",
        f"gptoss-tune verify --bundle . --served http://{host}:{PORT}",
        "```",
        "",
    ]
    return "\n".join(lines)
