"""Weights to a trainable module: load, keep the experts packed, attach adapters.

``load_base`` reads a checkpoint, ``add_adapters`` puts LoRA on attention and on all experts; the
expert forward that both rely on is registered with transformers under ``gptoss_tune``.
"""
