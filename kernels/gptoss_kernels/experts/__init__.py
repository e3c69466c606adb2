"""The expert layer: one autograd function over records, with its products on several engines.

``experts`` and ``experts_reference`` are the operation; ``projection`` is one frozen projection
with its adapters; ``records`` is what passes between forward and backward; ``torch_engine`` and
``triton_engine`` compute the stages. On Triton ``products`` runs the large products, ``engines``
chooses who computes them, ``decode`` decodes MXFP4 for them, and ``quack`` is QuACK's product.
"""

from gptoss_kernels.experts.experts import experts, experts_reference
from gptoss_kernels.experts.projection import ExpertProjection

__all__ = ["ExpertProjection", "experts", "experts_reference"]
