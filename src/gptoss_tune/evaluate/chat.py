"""Talk to a merged model, or to base + adapter, with plain transformers and PEFT.

It is the last check of an export, so nothing of the training is in the way: transformers loads the
folder, PEFT adds the adapter, openai-harmony renders the conversation and reads the answer token by
token, which is what tells the channels apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from openai_harmony import (
    Conversation,
    DeveloperContent,
    HarmonyError,
    Message,
    ReasoningEffort,
    RenderConversationConfig,
    Role,
    StreamableParser,
    SystemContent,
)
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils.quantization_config import Mxfp4Config

from gptoss_tune.evaluate.parse import STOP_IDS
from gptoss_tune.harmony.vocabulary import load_vocabulary
from gptoss_tune.weights import Checkpoint
from gptoss_tune.weights.adapter import Adapter

if TYPE_CHECKING:
    from peft import LoraConfig

RAW = "not harmony"
"""Channel under which text is shown once a model has left the format."""

Show = Callable[[str, str], None]


@dataclass(frozen=True)
class ChatSettings:
    """How to answer.

    Attributes:
        effort: Reasoning effort in the system message.
        instructions: Developer instructions, if any.
        date: Conversation start date, ``YYYY-MM-DD``.
        max_new_tokens: Longest answer, chain of thought included.
        temperature: 0 takes the likeliest token.
    """

    effort: Literal["low", "medium", "high"] = "medium"
    instructions: str | None = None
    date: str = "2025-06-28"
    max_new_tokens: int = 512
    temperature: float = 1.0


@dataclass(frozen=True)
class Answer:
    """What a model said, and why it ended.

    Attributes:
        messages: The messages that were harmony; the last one may be cut.
        ended: ``"stop"`` by the model itself, ``"length"`` by ``max_new_tokens``, ``"interrupt"``
            by Ctrl-C.
    """

    messages: list[Message]
    ended: Literal["stop", "length", "interrupt"]


class ChatModel:
    """A loaded model and its conversation so far."""

    def __init__(
        self, checkpoint: Checkpoint, settings: ChatSettings, adapter: Adapter | None = None
    ) -> None:
        """Load ``checkpoint``, with ``adapter`` beside it when given, onto the GPU if there is one.

        Raises:
            DataError: The tokenizer is not that of gpt-oss.
        """
        self.settings = settings
        self._encoding = load_vocabulary(checkpoint.path).encoding
        self._model = load_plain(checkpoint, adapter)
        self._messages = self._opening()

    def begin(self, settings: ChatSettings) -> None:
        """Forget what was said, and answer by ``settings`` from here on."""
        self.settings = settings
        self._messages = self._opening()

    def ask(self, text: str, show: Show) -> Answer:
        """Add a user message, generate the answer, and return it.

        Ctrl-C ends the answer alone; what was said of it stays in the conversation. Where nothing
        was, the question is taken back.

        Args:
            text: What the user says.
            show: Called with channel and new text as tokens arrive.
        """
        self._messages.append(Message.from_role_and_content(Role.USER, text))
        prompt = self._encoding.render_conversation_for_completion(
            Conversation.from_messages(self._messages),
            Role.ASSISTANT,
            RenderConversationConfig(auto_drop_analysis=True),
        )
        streamer = ChannelStreamer(StreamableParser(self._encoding, Role.ASSISTANT), show)
        streamer.decode = self._encoding.decode
        interrupted = False
        try:
            self._generate(prompt, streamer)
        except KeyboardInterrupt:
            interrupted = True
            streamer.end()
        said = streamer.messages()
        self._messages += said
        if interrupted:
            if not said:
                self._messages.pop()
            return Answer(said, "interrupt")
        return Answer(said, "stop" if streamer.stopped else "length")

    def _opening(self) -> list[Message]:
        system = SystemContent.new().with_conversation_start_date(self.settings.date)
        effort = ReasoningEffort(self.settings.effort.capitalize())
        opening = [Message.from_role_and_content(Role.SYSTEM, system.with_reasoning_effort(effort))]
        if self.settings.instructions:
            developer = DeveloperContent.new().with_instructions(self.settings.instructions)
            opening.append(Message.from_role_and_content(Role.DEVELOPER, developer))
        return opening

    @torch.no_grad()
    def _generate(self, prompt: Sequence[int], streamer: ChannelStreamer) -> None:
        device = next(self._model.parameters()).device
        sampling: dict[str, Any] = {"do_sample": False}
        if self.settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": self.settings.temperature}
        input_ids = torch.tensor([list(prompt)], device=device)
        self._model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            streamer=streamer,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=list(STOP_IDS),
            pad_token_id=STOP_IDS[-1],
            **sampling,
        )


class ChannelStreamer(BaseStreamer):
    """Receives tokens from ``generate`` and passes their text on with its channel."""

    def __init__(
        self,
        parser: StreamableParser,
        show: Show,
        decode: Callable[[list[int]], str] = lambda ids: str(ids),
    ) -> None:
        """Parse with ``parser``, report to ``show``, spell raw tokens with ``decode``."""
        self._parser, self._show, self.decode = parser, show, decode
        self._prompt_seen = False
        self._raw = False
        self._unshown: list[int] | None = []  # None once anything was shown
        self.stopped = False
        """Whether the last token is one by which the model itself ends an answer."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt first, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self.stopped = token in STOP_IDS
            self._take(token)

    def end(self) -> None:
        """Close a message that the length limit cut off; show what never became one."""
        if self._unshown:
            self._show(RAW, self.decode(self._unshown))
        elif not self._raw and self._parser.current_content:
            self._parser.process_eos()

    def messages(self) -> list[Message]:
        """Return the messages of the answer that were harmony."""
        return list(self._parser.messages)

    def _take(self, token: int) -> None:
        if not self._raw:
            try:
                self._parser.process(token)
            except HarmonyError:
                self._raw = True  # said through the channel's name; an untrained model does this
            else:
                delta = self._parser.last_content_delta
                if delta and token not in STOP_IDS:
                    self._unshown = None
                    self._show(self._channel(), delta)
                elif self._unshown is not None:
                    self._unshown.append(token)
                return
        self._show(RAW, self.decode([*(self._unshown or ()), token]))
        self._unshown = None

    def _channel(self) -> str:
        channel = self._parser.current_channel or "no channel"
        recipient = self._parser.current_recipient
        return f"{channel} to {recipient}" if recipient else channel


def load_plain(checkpoint: Checkpoint, adapter: Adapter | None = None) -> Any:
    """Return the model in plain transformers, with PEFT's adapter when given.

    MXFP4 stays packed where transformers has kernels for it, on a GPU and without an adapter;
    elsewhere it is decoded to bf16.
    """
    gpu = torch.cuda.is_available()
    arguments: dict[str, Any] = {
        "dtype": "auto",
        "trust_remote_code": False,
        "use_safetensors": True,
        "local_files_only": True,
    }
    if gpu:
        arguments["device_map"] = "auto"
    if checkpoint.expert_format == "mxfp4":
        arguments["quantization_config"] = Mxfp4Config(dequantize=not gpu or adapter is not None)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, **arguments)
    if adapter is not None:
        from peft import PeftModel

        # PEFT would act on every option of the adapter's own file, and match its patterns.
        config = plain_config(adapter)
        model = PeftModel.from_pretrained(model, str(adapter.path), config=config)
    return model.eval()


def plain_config(adapter: Adapter) -> LoraConfig:
    """Return PEFT's configuration of what was checked of an adapter: targets, ranks, scalings."""
    from peft import LoraConfig

    targets = adapter.targets.values()
    rank = max(target.rank for target in targets)
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        target_modules=[target.module for target in targets if not target.experts],
        target_parameters=[target.module for target in targets if target.experts],
        rank_pattern={target.module: target.rank for target in targets},
        alpha_pattern={target.module: target.scaling * target.rank for target in targets},
        inference_mode=True,
    )
