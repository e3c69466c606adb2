"""The command that evaluates a merged model with lm-eval, through the chat format.

gpt-oss scores 0.90 on GSM8K in its chat format and 0.30 as plain completions, the same weights: so
the template is applied, few-shot examples become turns, and the chain of thought is cut off before
grading. ``lm-eval`` decodes without special tokens, which would glue the channels together; given
the id of ``<|message|>`` it keeps what follows the last one, the final channel's text. Its stop
sequences are texts and can also end a chain of thought, so ``until`` is replaced by the end token.

See the flags in EleutherAI/lm-evaluation-harness, docs/interface.md, and ``think_end_token`` in its
lm_eval/models/huggingface.py. It is no dependency of this package: it has its own releases and its
own idea of which torch to install.
"""

from __future__ import annotations

import shlex
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
