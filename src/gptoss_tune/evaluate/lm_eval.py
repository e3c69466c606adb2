"""The command that evaluates a merged model with lm-eval, through the chat format.

gpt-oss scores 0.90 on GSM8K in its chat format and 0.30 as plain completions, the same weights: so
the template is applied, few-shot examples become turns, and the chain of thought is cut off before
grading. ``lm-eval`` decodes without special tokens, which would glue the channels together; given
the id of ``<|message|>`` it keeps what follows the last one, the final channel's text. Its stop
sequences are texts and can also end a chain of thought, so ``until`` is replaced by the end token.

A served model is asked through its chat API instead: the server parses the channels, so ``lm-eval``
sees the final one alone and looks at no reasoning text (tested with 0.4.13). Its tasks' own stop
texts are sent to the server, which may look for them in the chain of thought, so they are replaced
there too. A server that does not parse channels sends all of them as one text, and what is graded
then is that; such a server is no subject of ``gptoss-tune benchmark`` either.

See the flags in EleutherAI/lm-evaluation-harness, docs/interface.md, and ``think_end_token`` in its
lm_eval/models/huggingface.py. It is no dependency of this package: it has its own releases and its
own idea of which torch to install.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gptoss_tune.harmony.vocabulary import MESSAGE

TASK = "gsm8k_cot"
ROOM = 4096
"""Tokens of an answer: a chain of thought that is cut off is a wrong answer."""


def lm_eval_command(merged: str | Path, dtype: str = "bfloat16") -> str:
    """Return the shell command for a merged checkpoint."""
    model_args = f"pretrained={merged},dtype={dtype},think_end_token={MESSAGE}"
    return shlex.join(
        [
            "lm_eval",
            "--model=hf",
            f"--model_args={model_args}",
            f"--tasks={TASK}",
            "--apply_chat_template",
            "--fewshot_as_multiturn",
            f"--gen_kwargs=max_gen_toks={ROOM},do_sample=False,until=<|return|>",
            "--batch_size=auto",
            "--log_samples",
            f"--output_path={Path(merged).name or 'merged'}-lm-eval",
        ]
    )


def served_lm_eval_command(
    url: str,
    model: str,
    *,
    tasks: Sequence[str] = (TASK,),
    include: str | Path | None = None,
    out: str | Path | None = None,
    at_once: int = 8,
) -> str:
    """Return the shell command for a model behind an OpenAI-compatible server.

    Args:
        url: Of the API, such as ``http://127.0.0.1:8000/v1``.
        model: As the server calls it.
        tasks: Names of tasks.
        include: Folder with task files of one's own.
        out: Folder of the results; default: named after the model.
        at_once: Requests at a time.
    """
    address = f"{url.rstrip('/')}/chat/completions"
    model_args = f"base_url={address},model={model},num_concurrent={at_once},max_retries=3"
    words = [
        "lm_eval",
        "--model=local-chat-completions",
        f"--model_args={model_args}",
        f"--tasks={','.join(tasks)}",
        "--apply_chat_template",
        f"--gen_kwargs=max_gen_toks={ROOM},until=<|return|>",
        "--log_samples",
        f"--output_path={out or Path(model).name + '-lm-eval'}",
    ]
    if include is not None:
        words.append(f"--include_path={include}")
    return shlex.join(words)
