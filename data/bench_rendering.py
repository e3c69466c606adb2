"""Rendering against the bare tokenizer, and packing: one table, one core.

    .venv/bin/python data/bench_rendering.py [--megabytes 4] [--samples 1000000]

Every contestant runs in a process of its own, pinned to one core, over the same conversations (the
shipped ones, each time with another number in front of every text). "bare" encodes the texts of the
messages and nothing else; "rendering" parses the JSON lines, checks them, renders every turn in its
context and returns the columns of a dataset. Throughput is of the messages' text, so the context
that rendering repeats for later turns counts as nothing. Seconds are of the processor,
the best of five passes, so that a busy machine disturbs less; memory is the peak of the process.
"""

# ruff: noqa: T201
from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from gptoss_tune.harmony.dataset.packing import efficiency, pack
from gptoss_tune.harmony.dataset.render_rows import RowRenderer, SampleSettings, chunks
from gptoss_tune.harmony.render import RenderSettings
from gptoss_tune.harmony.vocabulary import SPLIT_PATTERN, load_vocabulary, tokenizer_ranks
from gptoss_tune.shipped import shipped

PASSES = 5
CONTESTANTS = ("tiktoken", "openai-harmony", "tokenizers", "rendering")


def conversations(megabytes: float, repeated: int = 1) -> Iterator[bytes]:
    """Yield JSON lines until their messages hold this much text, each text so many times over."""
    files = ("reasoning", "multi_turn", "tools", "code")
    folder = shipped("data") / "conversations"
    rows = [
        json.loads(line)
        for name in files
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    left, number = megabytes * 1e6, 0
    while left > 0:
        for row in rows:
            number += 1
            changed = {**row, "messages": [_numbered(m, number, repeated) for m in row["messages"]]}
            left -= sum(len(text.encode()) for text in texts_of(changed))
            yield json.dumps(changed, ensure_ascii=False).encode()
            if left <= 0:
                return


def _numbered(message: dict, number: int, repeated: int) -> dict:
    return {
        key: "\n".join(f"{number}.{n} {value}" for n in range(repeated))
        if key in ("content", "thinking") and value
        else value
        for key, value in message.items()
    }


def texts_of(row: dict) -> list[str]:
    """Return the texts of a row's messages: contents, thoughts and arguments."""
    texts: list[str] = []
    for message in row["messages"]:
        texts += [message[key] for key in ("content", "thinking") if message.get(key)]
        texts += [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
    return texts


def bare(name: str) -> Callable[[str], object]:
    """Return a tokenizer's function from text to ids."""
    if name == "tokenizers":
        from transformers.convert_slow_tokenizer import TikTokenConverter

        ranks = shipped("data") / "vocab" / "o200k_base.tiktoken"
        converted = TikTokenConverter(vocab_file=str(ranks), pattern=SPLIT_PATTERN).converted()
        return lambda text: converted.encode(text, add_special_tokens=False).ids
    if name == "tiktoken":
        import tiktoken

        encoding = tiktoken.Encoding(
            "o200k", pat_str=SPLIT_PATTERN, mergeable_ranks=tokenizer_ranks(), special_tokens={}
        )
        return encoding.encode_ordinary
    encoding = load_vocabulary().encoding
    return lambda text: encoding.encode(text, disallowed_special=())


def contest(name: str, lines: list[bytes]) -> None:
    """Run one contestant over JSON lines and print its figures as JSON."""
    size = sum(len(text.encode()) for line in lines for text in texts_of(json.loads(line)))
    if name == "rendering":
        settings = SampleSettings(RenderSettings(), 131_072, "error", "error")
        renderer = RowRenderer(load_vocabulary(), settings)

        def once() -> int:
            located = ((f"bench:{number}", line) for number, line in enumerate(lines))
            return sum(len(renderer.columns(chunk).input_ids) for chunk in chunks(located))
    else:
        texts = [text for line in lines for text in texts_of(json.loads(line))]
        encode = bare(name)

        def once() -> int:
            return sum(len(encode(text)) for text in texts)  # pyright: ignore[reportArgumentType]

    seconds = float("inf")
    for _ in range(PASSES):
        started = time.process_time()
        tokens = once()
        seconds = min(seconds, time.process_time() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {"seconds": seconds, "bytes": size, "tokens": tokens, "mib": peak, "rows": len(lines)}
        )
    )


def packing(samples: int) -> None:
    """Pack chat-like lengths and print time and fill."""
    generator = np.random.default_rng(0)
    for label, median, spread in (("short chats", 300, 0.9), ("long chats", 1200, 0.9)):
        lengths = generator.lognormal(np.log(median), spread, samples)
        lengths = np.clip(lengths, 20, 4096).astype(np.int64)
        started = time.perf_counter()
        packed = pack(lengths, 4096, seed=0)
        seconds = time.perf_counter() - started
        filled = efficiency(lengths, len(packed), 4096)
        print(f"| {label}, {samples:,} samples | {seconds:.1f} s | {filled:.2%} |")


def compare(megabytes: float, repeated: int) -> None:
    """Print one table: each contestant against rendering."""
    figures = {}
    for name in CONTESTANTS:
        command = [sys.executable, str(Path(__file__)), "--contestant", name]
        command += ["--megabytes", str(megabytes), "--repeated", str(repeated)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        done = subprocess.run(command, check=True, capture_output=True, env=environment)
        figures[name] = json.loads(done.stdout)
    ours = figures["rendering"]
    print(f"{ours['bytes'] / ours['rows']:,.0f} bytes of text a row")
    print("| | text MB/s | tokens/s | peak MiB | rendering's speed | its memory |")
    print("|---|---|---|---|---|---|")
    for name, found in figures.items():
        speed = found["bytes"] / found["seconds"] / 1e6
        rate, mib = found["tokens"] / found["seconds"], found["mib"]
        shares = f"{found['seconds'] / ours['seconds']:.0%} | {ours['mib'] / mib:.0%}"
        print(f"| {name} | {speed:.2f} | {rate:,.0f} | {mib:.0f} | {shares} |")
    print()


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=4)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--repeated", type=int, default=1, help="makes the texts longer")
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        contest(options.contestant, list(conversations(options.megabytes, options.repeated)))
        return
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, ",
        end="",
    )
    print(", ".join(f"{name} {version(name)}" for name in CONTESTANTS[:3]))
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    for repeated in (1, 8):
        compare(options.megabytes, repeated)
    print("\n| packing into rows of 4,096 | time | filled |\n|---|---|---|")
    packing(options.samples)


if __name__ == "__main__":
    main()
