"""One model spread over several GPUs with FSDP2: a rank holds a share, and gathers by the layer.

Every decoder layer is a unit of its own, its adapters included: it is gathered before it computes,
forward and backward, and forgotten afterwards. Experts travel packed (see ``ExpertWeight``). The
token embeddings are a unit too, because they are needed for a moment only; the final norm and
``lm_head`` stay together from forward to backward, which read them directly after each other.

The ranks read their own experts from the files, so no rank ever holds the whole model.

``fully_shard`` is called here and not by Accelerate, whose FSDP2 path exists on GPUs only, casts
the outputs and the gradients' sums to bf16 and the inputs with them: losses and adapters would be
others than those of one process. With weights gathered in the dtypes they are held in, every rank
computes what it computes alone, and the path that is tested on CPUs is the one that runs on GPUs.

E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard

from gptoss_tune.errors import MachineError
from gptoss_tune.recipe.recipe import uneven_experts


@dataclass(frozen=True)
class Share:
    """Which part of every tensor one rank holds.

    Attributes:
        rank: Number of the rank.
        ranks: Over how many the model is spread.
    """

    rank: int
    ranks: int

    def of_experts(self, experts: int) -> tuple[int, int]:
        """Return the first expert of this rank and the one after its last.

        Raises:
            MachineError: The experts cannot be dealt out evenly.
        """
        reason = uneven_experts(experts, self.ranks)
        if reason is not None:
            raise MachineError(reason)
        each = experts // self.ranks
        return self.rank * each, (self.rank + 1) * each


def shard(model: nn.Module, device: torch.device) -> None:
    """Spread ``model`` over all ranks, in place; every rank has to call it.

    Args:
        model: gpt-oss on ``device``, with adapters or bare, its experts read as this rank's
            ``Share``.
        device: Where the ranks compute; a GPU of each rank's own, or the CPU.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if any(True for _ in base.get_input_embeddings().parameters()):
        fully_shard(base.get_input_embeddings(), mesh=mesh, reshard_after_forward=True)
    # The bare model and not PEFT's wrapper: whatever calls it passes here, generation too.
    fully_shard(base, mesh=mesh)


def is_sharded(model: Any) -> bool:
    """Return whether ``shard`` was called on ``model``."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def gather_nothing(model: Any) -> None:
    """Give up what is still gathered, so that every parameter is this rank's share again.

    The outermost unit waits for a backward pass, which does not come after an evaluation.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor put together from all ranks, which all have to ask; others as they are.

    In one collective that has ended when it returns. ``full_tensor`` gathers in the background and
    keeps its buffers in a list of torch's own until somebody waits.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    assert tuple(tensor.placements) == (Shard(0),), tensor.placements  # as ``shard`` cuts
    own, rows = tensor.to_local(), tensor.shape[0]
    ranks = tensor.device_mesh.size()
    # Shares are of one size but for the last ones, which may be short or empty.
    padded = own.new_zeros((-(-rows // ranks), *tensor.shape[1:]))
    padded[: own.shape[0]] = own
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=tensor.device_mesh.get_group())
    return torch.cat(parts)[:rows]


def share_of(tensor: Tensor) -> Tensor:
    """Return this rank's part of a sharded tensor; others as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_factors(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters of a spread model, each put together, by parameter name on the CPU.

    Every rank has to call it; the first one gets the tensors, the others get them empty, so that
    the host holds one copy.
    """
    first = dist.get_rank() == 0
    factors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            together = whole(parameter.detach())
            factors[name] = together.cpu() if first else together.new_empty(0)
    return factors
