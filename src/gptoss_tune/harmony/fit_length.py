"""Examples fitted to a length: one of a conversation is cut short, a document is cut in pieces."""

from __future__ import annotations

from gptoss_tune.harmony.render import Example


def truncate(example: Example, max_length: int) -> Example | None:
    """Return an example cut to ``max_length`` tokens, never inside a message's header.

    Returns:
        The shorter example, without an end token; None when nothing trained would be left.
    """
    cut = max_length
    for span in example.spans:
        if span.start < cut <= span.body:
            cut = span.start
    if not example.loss_weights[:cut].any():
        return None
    spans = tuple(
        span if span.end <= cut else span._replace(end=cut)
        for span in example.spans
        if span.start < cut
    )
    return Example(
        example.input_ids[:cut],
        example.loss_weights[:cut],
        example.channels[:cut],
        spans,
        example.source,
    )


def cut_document(example: Example, max_length: int) -> list[Example]:
    """Return a document of raw text in pieces of at most ``max_length`` tokens.

    Each but the first begins with the last token of the one before, which is its context: every
    token after the document's first is predicted once. ``<|endoftext|>`` ends the last alone.
    """
    length = len(example.input_ids)
    if length <= max_length:
        return [example]
    pieces: list[Example] = []
    for start in range(0, length - 1, max_length - 1):
        part = slice(start, start + max_length)
        loss_weights = example.loss_weights[part].copy()
        loss_weights[0] = 0
        size = len(loss_weights)
        spans = tuple(span._replace(end=size) for span in example.spans)
        channels = example.channels[part]
        pieces.append(
            Example(example.input_ids[part], loss_weights, channels, spans, example.source)
        )
    return pieces
