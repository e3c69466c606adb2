"""llama.cpp in this process: token ids in, token ids out, one answer at a time.

``xllamacpp`` holds llama.cpp's own server as a library. It listens on this machine alone and asks
for a key that only this process knows. Each request is for the next token or few: llama.cpp streams
text, and leaves out the ids of a character that is spread over several tokens, while the answer to
a whole request has every id. What was computed stays in the cache (``swa_full``), so that a request
computes its new tokens alone, in the same batches of one as a stream would.

The weights, the cache and the arithmetic are llama.cpp's; nothing of it is written to the terminal.
"""

from __future__ import annotations

import ctypes
import hashlib
import http.client
import importlib.util
import json
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gptoss_tune.errors import CheckpointError, DataError, MachineError
from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.weights.gguf.file import GgufModel, open_gguf, refuse_no_model

if TYPE_CHECKING:
    from gptoss_tune.evaluate.generate import Sampling

CONTEXT: Final = 8192
"""Tokens of a conversation that memory is taken for, unless another number is asked for."""
_TOKENS_PER_REQUEST: Final = 8192
"""Length of a conversation from which on two tokens are asked for at a time, then three: a request
holds the whole conversation, and reading it takes time too."""
_SILENT, _ERRORS = -1, 1  # verbosity of llama.cpp
_SHOWN_LINES: Final = 3
_LOGGER_S: Final = 0.5
"""Seconds that the logger is given where it cannot be asked whether it is done."""


class LlamaCpp:
    """A loaded GGUF model.

    Attributes:
        files: The model's files.
        context: Longest prompt and answer together, in tokens.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        context: int = CONTEXT,
        adapters: Sequence[Path] = (),
        threads: int | None = None,
    ) -> None:
        """Load a model.

        Args:
            name: A GGUF file, or a folder with one.
            context: Longest prompt and answer together, in tokens; memory is taken for it at once.
            adapters: GGUF files of LoRA factors, all applied at their own scale.
            threads: Of the CPU; ``None``: ``OMP_NUM_THREADS``, else llama.cpp's choice.

        Raises:
            CheckpointError: No model of gpt-oss is there, or llama.cpp does not read it.
            MachineError: ``xllamacpp`` is not installed.
        """
        refuse_without_llama_cpp()
        model = _opened(name)
        refuse_no_model(name, model)
        self.files, self.context = [file.path for file in model.files], context
        self._key = secrets.token_hex(32)
        loras = [file.path for adapter in adapters for file in _opened(adapter).files]
        self._server = _load(self.files[0], loras, context, threads, self._key)
        address = self._server.listening_address.removeprefix("http://")
        self._connection = http.client.HTTPConnection(address)

    def close(self) -> None:
        """Free the model and end its server; nothing can be asked any more."""
        self._connection.close()
        self._server = None

    def stream(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[int]:
        """Yield the generated ids of one prompt as they come, the one that ends it included.

        As in ``generate.stream_tokens`` a temperature of 0 takes the likeliest token, and top_p is
        taken of what the temperature left; a seed draws the same again, but other tokens than it
        draws there.

        Args:
            prompt: Ids up to ``<|start|>assistant``.
            sampling: How.
            should_stop: Asked before each request; true ends the answer.

        """
        ids, left = list(prompt), sampling.max_new_tokens
        while left > 0 and not should_stop():
            wanted = min(left, 1 + len(ids) // _TOKENS_PER_REQUEST)
            reply = self.ask("/completion", _request(ids, wanted, sampling))
            for token in reply["tokens"]:
                yield token
                if token in STOP_IDS:
                    return
            if reply["stop_type"] == "eos" or not reply["tokens"]:
                return
            ids += reply["tokens"]
            left -= len(reply["tokens"])

    def refuse_too_long(self, prompt: int, answer: int) -> None:
        """Refuse what the context has no room for.

        Raises:
            DataError: Prompt and answer together have more tokens than memory was taken for.
        """
        if prompt + answer > self.context:
            raise DataError(
                f"the conversation has {prompt:,} tokens; with an answer of up to {answer:,} that "
                f"is over the {self.context:,} that memory was taken for: begin anew, allow a "
                "shorter answer, or take a larger context"
            )

    def tokenize(self, text: str) -> list[int]:
        """Return llama.cpp's ids of a text in which special tokens are matched."""
        asked = {"content": text, "parse_special": True, "add_special": False}
        return self.ask("/tokenize", asked)["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return llama.cpp's text of ids, broken UTF-8 replaced."""
        return self.ask("/detokenize", {"tokens": list(ids)})["content"]

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return what llama.cpp's server answers to ``body``; Ctrl-C ends what it computes.

        Raises:
            MachineError: It refused, or is gone.
        """
        try:
            status, raw = self._post(path, json.dumps(body))
        except (OSError, http.client.HTTPException):
            try:  # the server lets go of a connection over which nothing was asked for seconds
                status, raw = self._post(path, json.dumps(body))
            except (OSError, http.client.HTTPException) as error:
                raise MachineError(f"llama.cpp gave no answer to {path} ({error})") from error
        if status != http.HTTPStatus.OK:
            raise MachineError(f"llama.cpp refused {path}: {_reason(raw)}")
        return json.loads(raw)

    def _post(self, path: str, body: str) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        try:
            self._connection.request("POST", path, body, headers)
            response = self._connection.getresponse()
            return response.status, response.read()
        except BaseException:
            self._connection.close()  # half of an answer may wait in it; the next opens it anew
            raise


def refuse_without_llama_cpp() -> None:
    """Refuse to go on where llama.cpp is not installed.

    Raises:
        MachineError: It is not.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        raise MachineError(
            "a GGUF file is run by llama.cpp, which is not installed here; "
            "pip install 'gptoss-tune[llama-cpp]'"
        )


def _opened(name: str | Path) -> GgufModel:
    """Return what ``name`` means, each file with a whole header.

    llama.cpp is given the first file and finds the others beside it.
    """
    return open_gguf(Path(os.path.expanduser(name)))


def _request(ids: list[int], wanted: int, sampling: Sampling) -> dict[str, Any]:
    """Return the body of a request; every sampler that is not asked for is left out."""
    return {
        "prompt": ids,
        "n_predict": wanted,
        "return_tokens": True,
        "cache_prompt": True,
        "response_fields": ["tokens", "stop_type"],
        "temperature": sampling.temperature,
        "samplers": ["temperature", "top_p"],
        "top_p": sampling.top_p,
        "seed": _seed(sampling.seed, len(ids)),
    }


def _seed(seed: int | None, position: int) -> int:
    """Return a seed of 32 bits for the draws of one request; -1 draws others each time."""
    if seed is None:
        return -1
    digest = hashlib.blake2b(repr((seed, position)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % (2**32 - 1)  # llama.cpp takes 2**32 - 1 for -1


def _load(path: Path, adapters: Sequence[Path], context: int, threads: int | None, key: str) -> Any:
    """Return the running server; where it does not start, find out why.

    Raises:
        CheckpointError: It does not start, with llama.cpp's own words.
    """
    import xllamacpp

    library: Any = xllamacpp  # its types are not written down
    wanted = library.CommonParams()
    wanted.model.path = str(path)
    wanted.lora_adapters = [library.CommonAdapterLoraInfo(str(file), 1.0) for file in adapters]
    wanted.n_ctx, wanted.n_parallel = context, 1
    # A windowed layer that forgets could only be asked on from a copy of its past, a few tokens
    # back: every request would compute these again.
    wanted.swa_full, wanted.n_ctx_checkpoints, wanted.cache_ram_mib = True, 0, 0
    wanted.warmup = False
    wanted.api_keys, wanted.ui, wanted.endpoint_slots = [key], False, False
    # llama.cpp's threads spin: two of them on two cores, one of which is busy, gave a third of the
    # tokens of one (docs/serving.md). It does not read the variable that says how many are free.
    given = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and given.isdecimal() and int(given):
        threads = int(given)
    if threads is not None:
        wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = threads
    wanted.verbosity = _SILENT
    try:
        return library.Server(wanted)
    except RuntimeError as error:
        wanted.verbosity = _ERRORS
        with _captured_errors() as said:
            with suppress(RuntimeError):
                library.Server(wanted)
            _drain(library.xllamacpp.__file__)
            reason = said()
        named = ", ".join(str(file) for file in (path, *adapters))
        raise CheckpointError(f"{named}: llama.cpp cannot load it: {reason or error}") from error


def _drain(file: str) -> None:
    """Wait until llama.cpp's logger, a thread that writes when it likes, has written everything.

    Args:
        file: The library, whose logger can be asked to by two functions of C++.
    """
    library = ctypes.CDLL(file)
    try:
        logger, flush = library._Z15common_log_mainv, library._Z16common_log_flushP10common_log
    except AttributeError:  # a compiler that names them otherwise, as on Windows
        time.sleep(_LOGGER_S)
        return
    logger.restype, flush.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    flush(logger())


@contextmanager
def _captured_errors() -> Iterator[Callable[[], str]]:
    """Take what is written to the standard error of the process; give a reader of its last lines.

    llama.cpp writes there from C++, past Python's ``sys.stderr``.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as taken:
        os.dup2(taken.fileno(), 2)

        def said() -> str:
            taken.seek(0)
            lines = taken.read().decode(errors="replace").splitlines()
            errors = dict.fromkeys(line.partition(" E ")[2].strip() for line in lines)
            return "; ".join([words for words in errors if words][:_SHOWN_LINES])

        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _reason(raw: bytes) -> str:
    """Return the message of an answer that refuses."""
    try:
        return json.loads(raw)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return raw[:200].decode(errors="replace")
