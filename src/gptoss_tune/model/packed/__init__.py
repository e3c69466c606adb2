"""Frozen linear layers held in 8 or 4 bits: the projections of attention, and ``lm_head``.

``Int8Linear`` and ``Nf4Linear`` are ``nn.Linear`` to PEFT; ``packed_layer`` makes one of a weight
as it is read, and ``head_weight`` is what the loss is computed from.
"""
