"""transformers' planner of continuous batching: the passes, and a cache as large as it may be.

It plans which requests go on, which begin, and where their keys and values lie in pages. What it
takes memory for is counted here as this project's attention needs it.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import (
    BackgroundThreadStatus,
    ContinuousBatchProcessor,
    OutputRouter,
)
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.initialization import (
    resolve_continuous_batching_config,
)
from transformers.generation.continuous_batching.scheduler import FIFOScheduler
from transformers.generation.continuous_batching.utils import get_device_and_memory_breakdown

from gptoss_tune.errors import MachineError
from gptoss_tune.rollout.answering import base_of, device_of

PAGE_TOKENS = 128
"""Tokens of a page: gpt-oss's window, which fills one."""
_WITHOUT_MASKS = "flash_attention_2"
"""Name of an attention in transformers that needs no mask, and no head of keys twice."""


class _OneProcess(DistributedHelper):
    """transformers' helper of tensor parallelism, without it: no rank waits for another."""

    def __init__(self) -> None:
        """Know of no mesh."""
        super().__init__(device_mesh=None, cpu_group_timeout=None)

    def set_tp_seed(self, seed: int | None, model_device: torch.device) -> None:
        """Leave the process's random state to the run: requests have their own draws."""


class Processor(ContinuousBatchProcessor):
    """transformers' planner, which is dropped without a collection of the whole process's garbage.

    Nothing of it is in a circle, so its cache is free as soon as nobody holds it.
    """

    def __del__(self) -> None:
        """Collect nothing."""


def processor_of(model: Any, longest: int, batch: int, pass_tokens: int) -> tuple[Processor, int]:
    """Return what plans the passes, and for how many requests of ``longest`` tokens it has room.

    Raises:
        MachineError: Not even one of them fits into memory.
    """
    config, device = base_of(model).config, device_of(model)
    dtype, helper = config.dtype, _OneProcess()
    # Its count of memory adds masks of all tokens, and a copy of keys and values for each query
    # head, unless attention is of a kind that needs neither; ours is, under a name it does not
    # know.
    counted = copy(config)
    counted._attn_implementation = _WITHOUT_MASKS
    while True:
        asked = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            # A page more of each kind: layers of one kind take theirs by the sector.
            num_blocks=batch * -(-longest // PAGE_TOKENS) + 4,
            max_batch_tokens=pass_tokens,
            max_requests_per_batch=batch,
            max_blocks_per_request=0,
            use_async_batching=False,
            use_cuda_graph=False,
            safety_margin=0.0,
            disable_nccl_graph_mixing=False,
        )
        resolved = resolve_continuous_batching_config(config, asked, None, False, device)
        resolved.max_memory_percent = _share(resolved, config, batch * longest)
        try:
            cache = PagedAttentionCache(
                counted, resolved, device, helper, dtype, model_supports_logits_to_keep=True
            )
            break
        except MemoryError as error:
            if batch == 1:
                raise MachineError(
                    f"method.sampler batched: keys and values of one request of {longest:,} tokens "
                    f"do not fit beside the model ({error}); lower method.max_new_tokens or "
                    f"data.max_length"
                ) from error
            batch -= -(-batch // 8)
    made = Processor(
        cache=cache,
        config=config,
        generation_config=GenerationConfig(do_sample=False),
        continuous_batching_config=resolved,
        logit_processor=ContinuousBatchingLogitsProcessorList(LogitsProcessorList()),
        input_queue=None,
        cancel_queue=None,
        output_router=OutputRouter(),
        background_thread_status=BackgroundThreadStatus(),
        model_device=device,
        model_dtype=dtype,
        scheduler=FIFOScheduler(cache, 0.0, batch),
        distributed_helper=helper,
    )
    return made, batch


def _share(resolved: ContinuousBatchingConfig, config: Any, tokens: int) -> float:
    """Return the share of the free memory that transformers may plan with.

    It is less than its own by what our attention makes of ``tokens`` keys while one token of each
    request is drawn: keys or values in fp32, the scores and their softmax. What is read from the
    pages and laid out by request is in its count, which reads the pages of windowed layers as well.
    """
    _, total, reserved, allocated = get_device_and_memory_breakdown()
    keys = config.num_key_value_heads * config.head_dim
    made = tokens * (keys + 2 * config.num_attention_heads) * 4
    free = max(1, total - max(allocated, reserved))
    return max(0.0, (resolved.max_memory_percent or 1.0) - made / free)
