"""The first recipe: from a data file, a model and a card to a short recipe that fits; no torch.

``look.look_at`` reads the data, ``columns`` maps rows of an unknown shape, ``goals`` says what they
are for, ``sizes`` chooses lengths, batches and epochs, ``fit`` plans from the best settings to the
smallest, and ``write.first_recipe`` puts it all into a text. ``gptoss-tune init`` asks, and writes
it. Nothing is imported here: what needs no tokenizer is asked before one is loaded.
"""
