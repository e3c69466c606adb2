"""vLLM's server as the sampler asks it: completions by ids, and the calls that change its weights.

Read in vLLM 0.33.0. What each call needs of the server's start:

* ``/v1/completions`` with ``return_token_ids``: nothing;
* ``/v1/load_lora_adapter``: ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` and ``--enable-lora``;
* ``/pause``, ``/collective_rpc``, ``/update_weight_version``, ``/server_info`` and the like:
  ``VLLM_SERVER_DEV_MODE=1``. They stand beside ``/v1`` and ask for no key: such a server belongs on
  a network of its own.
"""

from __future__ import annotations

import http.client
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from gptoss_tune.display import without_credentials
from gptoss_tune.errors import MachineError
from gptoss_tune.export.openai_server import (
    ModelList,
    OpenAIServer,
    TooLarge,
    post,
    said,
    said_with,
)
from gptoss_tune.files.strict_json import parse
from gptoss_tune.rollout.server.connection import LONGEST_ANSWER, CutOff, Exchange, Exchanges

BUSY = frozenset({429, 500, 502, 503, 504})
"""What another try may end otherwise."""
_NEEDS = {
    "load_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment and --enable-lora",
    "unload_lora_adapter": "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment",
}
_UNSEEN = "No adapter found"
"""vLLM's words where the folder of an adapter is not there for it."""
_DEV_MODE = "VLLM_SERVER_DEV_MODE=1 in its environment"
_KEY: Mapping[int, str] = dict.fromkeys(
    (401, 403), "; set the variable VLLM_API_KEY to the server's key"
)
CONTROL_SECONDS = 3600.0
"""For a call that loads weights: those of gpt-oss-120b from a slow disk."""


class TryAgain(Exception):
    """The server did not answer this time; says what it said."""


@dataclass
class CompletionServer(OpenAIServer):
    """A vLLM server."""

    endpoint: ClassVar[str] = "completions"
    gives: ClassVar[str] = "sampled answer"
    option: ClassVar[str] = "method.server_url"
    name_option: ClassVar[str] = "--served-model-name"
    proxies: ClassVar[bool] = False  # as ``connection`` asks for completions

    def complete(
        self, fields: Mapping[str, Any], exchanges: Exchanges, seconds: float
    ) -> dict[str, Any]:
        """Return the answer to one completion, asked once.

        Args:
            fields: Of the request.
            exchanges: Those under way; ending them ends this one.
            seconds: For the whole answer.

        Raises:
            CutOff: The exchanges were ended.
            TryAgain: No answer in time, no connection, or the server is busy or broken.
            MachineError: It refuses the request, or its answer is no JSON object.
        """
        exchange = Exchange(self.address, self.key, seconds)
        try:
            with exchanges.holding(exchange):
                status, raw = exchange.ask(fields)
        except CutOff:
            if exchanges.over:
                raise
            raise TryAgain(f"no whole answer within {seconds:g} s") from None
        except TimeoutError:
            raise TryAgain(f"no whole answer within {seconds:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            raise TryAgain(str(error) or type(error).__name__) from None
        except ValueError as error:
            raise self.no_answer(str(error)) from None
        if status in BUSY:
            raise TryAgain(said(status, raw, self.key))
        if status != 200:
            raise self.no_answer(said(status, raw, self.key) + _advice(status))
        try:
            answer = parse(raw)
        except ValueError as error:
            raise self.no_answer(f"the answer is no JSON: {error}") from None
        if not isinstance(answer, dict):
            raise self.odd("an object", answer)
        return answer

    def control(
        self,
        call: str,
        fields: Mapping[str, Any] | None = None,
        *,
        query: str = "",
        v1: bool = False,
    ) -> Any:
        """Return what the server answers to a call that is no completion; ``None`` for no text.

        Args:
            call: Its path.
            fields: Of its JSON; ``None``: it is a GET.
            query: Behind the path.
            v1: It stands below ``/v1``.

        Raises:
            MachineError: It does not have the call, or did not do it, in its own words.
        """
        address = f"{self._root}{'/v1' if v1 else ''}/{call}{query}"
        try:
            return post(
                address,
                fields,
                key=self.key,
                timeout_s=CONTROL_SECONDS,
                largest=LONGEST_ANSWER,
                proxies=self.proxies,
            )
        except urllib.error.HTTPError as error:
            told = said_with(error, self.key)
            if error.code == 404 and _UNSEEN in told:
                told += "; method.server_folder must be at this path for the server too"
            elif error.code in (404, 405) and call != "unload_lora_adapter":
                told += f"; start the server with {_NEEDS.get(call, _DEV_MODE)}"
            elif error.code in _KEY:
                told += _KEY[error.code]
            raise self._not_done(call, told) from None
        except TimeoutError:
            raise self._not_done(call, f"no answer within {CONTROL_SECONDS:g} s") from None
        except TooLarge as error:
            raise self._not_done(call, f"its answer has {error}") from None
        except ValueError:
            return None  # a text, or nothing: the status is 200
        except (OSError, http.client.HTTPException) as error:
            raise self._not_done(call, str(error) or type(error).__name__) from None

    def served(self) -> list[str]:
        """Return the names that it serves, the base's first.

        Raises:
            MachineError: It does not answer.
        """
        return _Served(self.url, "", key=self.key).names()

    def logprobs_mode(self) -> str | None:
        """Return which log-probabilities it tells, or None where it does not say.

        ``raw_logprobs``: before the temperature; ``processed_logprobs``: of the distribution that
        the token was drawn from.
        """
        told = self.control("server_info", query="?config_format=json")
        config = told.get("vllm_config") if isinstance(told, dict) else None
        model = config.get("model_config") if isinstance(config, dict) else None
        mode = model.get("logprobs_mode") if isinstance(model, dict) else None
        return mode if isinstance(mode, str) else None

    @property
    def _root(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def _not_done(self, call: str, reason: str) -> MachineError:
        text = f"{self._root}: the server did not do {call} ({reason})"
        return MachineError(without_credentials(text))


class _Served(ModelList):
    """The list of models of the server of a recipe."""

    option: ClassVar[str] = CompletionServer.option
    proxies: ClassVar[bool] = CompletionServer.proxies

    def refused(self, error: urllib.error.HTTPError) -> MachineError:
        """Return the error of another status than 200; the key is not named on a command line."""
        return self.no_answer(said_with(error, self.key) + _KEY.get(error.code, ""))


def _advice(status: int) -> str:
    """Return what helps where the server refuses a completion with this status."""
    gone = (
        "; it has not, or no longer, the weights that it was given: with --api-server-count above "
        "1 only one of its processes learns of an adapter"
    )
    return gone if status == 404 else _KEY.get(status, "")
