"""Frozen linear layers held in 8 or 4 bits: the projections of attention, and ``lm_head``.

``Int8Linear`` holds either, ``Nf4Head`` the head in bitsandbytes' NF4 (attention in NF4 is
bitsandbytes' own layer, which PEFT knows); ``packed_layer`` makes one of a layer's weight as it is
read, and ``head_weight`` is what the loss is computed from.
"""
