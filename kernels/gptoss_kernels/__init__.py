"""gptoss_kernels: the operations of a gpt-oss layer for training, in torch and in Triton.

Shape legend of the whole package: T tokens, K experts per token, M = T*K routed rows, H hidden,
I intermediate, E experts, R adapter rank.
"""

from gptoss_kernels.mxfp4 import MXFP4_BLOCK, Mxfp4Weight, dequantize_reference, quantize_reference

__all__ = ["MXFP4_BLOCK", "Mxfp4Weight", "dequantize_reference", "quantize_reference"]
