"""Sampling with a vLLM server: ``open_server_sampler``; its weights, its answers, its connection.

``open`` reads a recipe, ``sampler`` asks, ``answers`` says what an answer has to be, ``handover``
gives the server the trained weights, ``completions`` and ``connection`` are the HTTP below.
"""
