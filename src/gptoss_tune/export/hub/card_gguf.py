"""How to run a GGUF from the Hub, for its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def gguf_usage(repo: str, files: Sequence[str], prompts: Mapping[str, str]) -> str:
    """Return the commands that run a repository's GGUF, and what is known of each program.

    Args:
        repo: ``owner/name``.
        files: Its GGUF files, in order.
        prompts: How the run rendered its data, from ``prompts_of``.
    """
    effort = prompts.get("reasoning_effort", "medium")
    kwargs = f'--chat-template-kwargs \'{{"reasoning_effort": "{effort}"}}\''
    name = repo.partition("/")[2]
    return (
        f"```sh\nllama-server -hf {repo} --jinja {kwargs}\n"
        f"ollama run hf.co/{repo}\n"
        f"hf download {repo} --local-dir {name} && gptoss-tune chat {name}\n```\n\n"
        f"In LM Studio search for `{repo}`. The file{'s' if len(files) > 1 else ''}: "
        + ", ".join(f"`{file}`" for file in files)
        + f". The model was trained at {effort} reasoning effort; a private repository needs a "
        "token (`HF_TOKEN`). llama.cpp was run on files of this kind, Ollama and LM Studio were "
        "not: `gptoss-tune serve-config` writes a Modelfile whose template makes Ollama tell "
        "thoughts from answers."
    )
