"""Attention with sinks for training, on any engine that can give O and LSE and run a backward.

``attention`` and ``attention_reference`` are the operation; ``documents`` finds the documents of a
packed row; ``context_parallel`` computes one rank's part of rows that ranks share, cut by
``shards``; ``interface`` is what an engine must be able to do; ``engines`` chooses one and proves
it. The engines: ``eager`` and ``triton_engine`` are ours; ``torch_flash``, ``flex``, ``cudnn`` and
``fa4`` belong to torch, to cuDNN and to FlashAttention 4. ``sinks`` adds the sinks to an engine
that has none.
"""

from gptoss_kernels.attention.attention import attention, attention_reference
from gptoss_kernels.attention.documents import Documents, find_documents

__all__ = ["Documents", "attention", "attention_reference", "find_documents"]
