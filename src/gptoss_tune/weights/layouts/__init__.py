"""Checkpoints whose tensors lie otherwise than in the release, read as if they did not.

Programs that save a model leave their wrappers in the names (``_orig_mod.``, ``language_model.``),
keep the name of a packed tensor for a dense one, hold the experts one by one, or write OpenAI's own
layout. ``translation`` gives all of them the release's names, shapes and order, so that a
``Checkpoint`` reads one like the other:

* ``names``: other names for the same tensors;
* ``openai``, ``openai_config``: the layout of OpenAI's own code, ``original/`` in the release;
* ``experts``: stacks of experts that are made of other tensors while they are read;
* ``foreign``: what is no checkpoint of safetensors at all, and the way out;
* ``tensors``: what a tensor is and where it lies.

A program that loads the folder by itself does not translate. Who hands a folder on to one asks
``Checkpoint.require_released_names`` first. What no translation explains, ``refusals`` tells.
"""
