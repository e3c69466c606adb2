"""gptoss_kernels: the operations of a gpt-oss layer for training, in torch and in Triton.

Shape legend of the whole package: T tokens, K experts per token, M = T*K routed rows, H hidden,
I intermediate, E experts, R adapter rank.
"""

from gptoss_kernels.attention.attention import (
    Documents,
    attention,
    attention_reference,
    find_documents,
)
from gptoss_kernels.backend import choose_backend
from gptoss_kernels.combine import combine, combine_reference
from gptoss_kernels.experts.experts import experts, experts_reference
from gptoss_kernels.experts.grouped_matmul import grouped_matmul, grouped_matmul_reference
from gptoss_kernels.experts.projection import ExpertProjection
from gptoss_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_reference,
)
from gptoss_kernels.lora import (
    LowRankTerm,
    merged_expert_reference,
    ragged_outer,
    ragged_outer_reference,
)
from gptoss_kernels.mxfp4 import (
    MXFP4_BLOCK,
    Mxfp4Weight,
    dequantize,
    dequantize_reference,
    quantize,
    quantize_reference,
)
from gptoss_kernels.packed_linear import (
    INT8_BLOCK,
    Int8Weight,
    PackedWeight,
    packed_linear,
    quantize_int8,
)
from gptoss_kernels.rms_norm import rms_norm, rms_norm_reference
from gptoss_kernels.routing import Routing, route, route_reference
from gptoss_kernels.swiglu import swiglu, swiglu_reference

__all__ = [
    "INT8_BLOCK",
    "MXFP4_BLOCK",
    "Documents",
    "ExpertProjection",
    "Int8Weight",
    "LowRankTerm",
    "Mxfp4Weight",
    "PackedWeight",
    "Routing",
    "attention",
    "attention_reference",
    "choose_backend",
    "combine",
    "combine_reference",
    "dequantize",
    "dequantize_reference",
    "experts",
    "experts_reference",
    "find_documents",
    "grouped_matmul",
    "grouped_matmul_reference",
    "linear_cross_entropy",
    "linear_cross_entropy_reference",
    "merged_expert_reference",
    "packed_linear",
    "quantize",
    "quantize_int8",
    "quantize_reference",
    "ragged_outer",
    "ragged_outer_reference",
    "rms_norm",
    "rms_norm_reference",
    "route",
    "route_reference",
    "swiglu",
    "swiglu_reference",
]
