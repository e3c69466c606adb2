"""What the launcher asked for, held against what this version can do.

A packed expert stack is one tensor with two buffers inside, which FSDP2 would have to split along
the experts and put together again; that is not written yet, and FSDP's own error for it ("would
expand a stack of expert weights") names the wrong cause. So the run stops first, and says what
works: a copy of the whole model on each GPU, which MXFP4 makes small enough (20b: 12.8 GiB, 120b:
60.8 GiB).
"""

from __future__ import annotations

import os

from gptoss_tune.errors import MachineError

_UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": "FSDP (distributed_type: FSDP)",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed ZeRO (distributed_type: DEEPSPEED)",
}


def refuse_sharding() -> None:
    """Stop a run whose launcher shards the weights.

    Raises:
        MachineError: ``accelerate launch`` was configured for FSDP or DeepSpeed.
    """
    for variable, name in _UNSUPPORTED.items():
        if os.environ.get(variable, "false").lower() in ("true", "1", "yes"):
            raise MachineError(
                f"the launcher asks for {name}, which cannot shard experts packed in MXFP4 in this "
                "version; launch with recipes/accelerate/ddp.yaml, where each GPU holds the whole "
                "model (20b: 12.8 GiB, 120b: 60.8 GiB, adapters and activations besides)"
            )
