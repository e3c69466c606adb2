"""``gptoss-tune chat``: a conversation in the terminal.

``command``: its options, and which of them go together. ``subjects``: from a name to who answers.
``session``: the loop of questions and answers; ``commands``: what begins with a slash. ``editor``:
the line that is typed, ``history``: what was typed before. ``screen``: what is written, and
nothing else. ``terminal``: the terminal while an answer comes.
"""
