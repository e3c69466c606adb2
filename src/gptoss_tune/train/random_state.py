"""The state of each rank's random generators, as JSON: Python, NumPy, torch, and the rank's GPU.

Nothing that training computes draws from them: gpt-oss has no dropout, and the order of the rows
has a generator of its own. They are kept so that code that does draw stays exact, at 14 KB a rank.
Rank 0 writes all of them into one file, because a rank's own disk may not be the run's. The usual
``rng_state.pth`` was the alternative; it is a pickle, and one per rank.
"""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptoss_tune.errors import CheckpointError
from gptoss_tune.files.atomic import write_text
from gptoss_tune.files.strict_json import read_object

RANDOM = "random.json"


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of this process as JSON values."""
    version, words, gauss = random.getstate()
    generator: Any = np.random.get_state()
    name, key, position, has_gauss, cached = generator
    return {
        "python": [version, _text(np.array(words, dtype=np.uint32)), gauss],
        "numpy": [name, _text(key), position, has_gauss, cached],
        "torch": _text(torch.random.get_rng_state().numpy()),
        "cuda": _text(torch.cuda.get_rng_state(device).numpy()) if device.type == "cuda" else None,
    }


def save_random_states(folder: Path, states: list[dict[str, Any]]) -> None:
    """Write the states of all ranks, in their order."""
    write_text(folder / RANDOM, json.dumps({"ranks": states}) + "\n")


def load_random_state(folder: Path, rank: int, device: torch.device) -> bool:
    """Restore the generators of ``rank``.

    Returns:
        False when the checkpoint was written by fewer ranks: the generators stay as they are, and
        no loss depends on them.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / RANDOM
    try:
        ranks = read_object(path)["ranks"]
        if rank >= len(ranks):
            return False
        state = ranks[rank]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(_numbers(words, np.uint32).tolist()), gauss))
        name, key, position, has_gauss, cached = state["numpy"]
        np.random.set_state((name, _numbers(key, np.uint32), position, has_gauss, cached))
        torch.random.set_rng_state(torch.from_numpy(_numbers(state["torch"], np.uint8)))
        if device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(torch.from_numpy(_numbers(state["cuda"], np.uint8)), device)
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    return True


def _text(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _numbers(text: str, dtype: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=dtype).copy()
