"""TRL's ``GRPOTrainer`` on the tiny task of two tools, and one episode through its chat template.

``python kernels/bench/rivals/grpo.py MERGED [--steps 3]`` after

    gptoss-tune tiny runs/demo/wide --hidden 192 --layers 2
    gptoss-tune train tiny/tools
    gptoss-tune merge runs/demo/tools --out MERGED

TRL trains the merged model in plain transformers, on the prompts, results and answers of
``recipes/tiny/grpo.yaml``. Its tools need a chat template that TRL knows, so it gets the one that
TRL ships for gpt-oss: with ours it refuses to start, which is said first.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl import chat_template_utils as trl_templates

from gptoss_tune.harmony.formats.openai_chat import read_chat
from gptoss_tune.harmony.render import Renderer, RenderSettings
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.shipped import shipped

_CALL = "<|message|>{}<|call|>"
CALLS = {
    "recipient last": f"<|channel|>commentary to=functions.price <|constrain|>json{_CALL}",
    "recipient first": f" to=functions.price<|channel|>commentary <|constrain|>json{_CALL}",
    "as TRL's template renders it": f" to=functions.price<|channel|>commentary json{_CALL}",
}
"""One call in three spellings; the first two are harmony's."""
EPISODE = [
    {"role": "user", "content": "What does the lamp cost?"},
    {
        "role": "assistant",
        "thinking": "Look it up.",
        "content": None,
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "price", "arguments": "{}"},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "name": "price", "content": "12"},
    {"role": "assistant", "content": "12"},
]


class Shop:
    """The environment as TRL takes one: its public methods are the tools."""

    def reset(self, **row: Any) -> None:
        """Begin with a row of the data."""
        self._results = {e["name"]: e["result"] for e in json.loads(row["tool_results"])}

    def price(self) -> str:
        """What it costs."""
        return self._results["price"]

    def stock(self) -> str:
        """How many there are."""
        return self._results["stock"]


def main() -> None:
    """Say what TRL does with our template, with calls, with an episode, and in a short run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="what gptoss-tune merge has written")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    _say("## The checkpoint's own chat template")
    _say(_refusal(tokenizer))
    tokenizer.chat_template = trl_templates.gptoss_chat_template
    trl_templates.add_response_schema(tokenizer)
    _say("## Calls, as TRL reads them")
    _calls(tokenizer, asked.model)
    _say("## One episode")
    _episode(tokenizer, asked.model)
    _say(f"## {asked.steps} steps")
    _train(asked.model, tokenizer, asked.steps)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _refusal(tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        trl_templates.add_response_schema(tokenizer)
    except ValueError as error:
        return f"refused: {str(error).split('.')[0]}"
    return "taken"


def _calls(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    encoding = load_vocabulary(model).encoding
    tools = _rows("tools_train.jsonl")[0]["tools"]
    prompt = tokenizer.apply_chat_template(
        EPISODE[:1], tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    for name, text in CALLS.items():
        answer = f"<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant{text}"
        ids = encoding.encode(answer, allowed_special="all")
        found = trl_templates.parse_response(tokenizer, ids, prefix=prompt, tools=tools)
        calls = [call["function"]["name"] for call in found.get("tool_calls") or []]
        _say(f"{name}: calls read: {', '.join(calls) or 'none'}")


def _episode(tokenizer: PreTrainedTokenizerBase, model: str) -> None:
    """Show what the model saw and said, and what TRL's template makes of the same messages."""
    tools = _rows("tools_train.jsonl")[0]["tools"]
    vocabulary = load_vocabulary(model)
    renderer = Renderer(vocabulary, RenderSettings(reasoning_effort="low"))
    row = {"messages": EPISODE, "tools": tools, "reasoning_effort": "low"}
    (example,) = renderer.render(read_chat(row, "episode:1"))
    ours = list(map(int, example.input_ids))
    messages = [_plain(message) for message in EPISODE]
    theirs = tokenizer.apply_chat_template(
        messages, tools=tools, reasoning_effort="low", tokenize=True, return_dict=False
    )
    _say(f"tokens that were sampled and seen ({len(ours)}):\n{vocabulary.decode(ours)}")
    _say(f"the same messages by TRL's template ({len(theirs)}):\n{tokenizer.decode(theirs)}")


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as TRL's templates take it: arguments as a mapping."""
    calls = [
        {**call, "function": {**call["function"], "arguments": {}}}
        for call in message.get("tool_calls", [])
    ]
    plain = {key: value for key, value in message.items() if value is not None}
    return {**plain, "tool_calls": calls} if calls else plain


def _rows(name: str) -> list[dict[str, Any]]:
    text = (shipped("data") / "tiny" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _train(model: str, tokenizer: PreTrainedTokenizerBase, steps: int) -> None:
    rows = [
        {
            "prompt": row["messages"],
            "tool_results": json.dumps(row["tool_results"]),
            "answer": row["answer"],
        }
        for row in _rows("tools_train.jsonl")
    ]
    torch.manual_seed(0)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        settings = GRPOConfig(
            output_dir=str(Path(folder)),
            max_steps=steps,
            per_device_train_batch_size=24,
            num_generations=4,
            max_completion_length=64,
            learning_rate=1e-3,
            chat_template_kwargs={"reasoning_effort": "low"},
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        )
        trainer = GRPOTrainer(
            loaded,
            reward_funcs=_rewarded(),
            args=settings,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "o_proj"]),
            environment_factory=Shop,
        )
        begun = time.monotonic()
        trainer.train()
    seconds = time.monotonic() - begun
    for line in trainer.state.log_history:
        if "reward" in line:
            told = (
                "reward",
                "tools/call_frequency",
                "tools/failure_frequency",
                "completions/mean_length",
            )
            _say(", ".join(f"{name} {line[name]:.3f}" for name in told if name in line))
    _say(f"{seconds / steps:.1f} seconds a step")


def _rewarded() -> Callable[..., list[float]]:
    def success(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
        return [
            float((said[-1].get("content") or "") == right)
            for said, right in zip(completions, answer, strict=True)
        ]

    return success


if __name__ == "__main__":
    main()
