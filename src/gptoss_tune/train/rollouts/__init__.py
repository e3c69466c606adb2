"""Episodes of a run: prompts in order, phases and their ledger, what is kept of an episode."""
