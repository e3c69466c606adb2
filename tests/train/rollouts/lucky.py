"""Environments of these tests: their rewards follow from the episode's seed, or from nothing."""

import hashlib
import math


class Luck:
    """Gives 0 or 1 by the seed: some groups have rewards that differ, and some have not."""

    def reset(self, row, seed):
        """Keep the seed."""
        self.seed = seed

    def tools(self):
        """Offer nothing."""
        return []

    def reward(self, outcome):
        """Return whether the seed is a lucky one."""
        return {"luck": float(hashlib.sha256(str(self.seed).encode()).digest()[0] % 3 == 0)}


class Named(Luck):
    """Says what it gives."""

    components = ("luck",)


class Same(Luck):
    """Gives every episode the same."""

    def reward(self, outcome):
        """Return 1."""
        return {"luck": 1.0}


class Odd(Luck):
    """Gives what is no number to a few."""

    def reward(self, outcome):
        """Return infinity to the lucky ones, and raise for some others."""
        first = hashlib.sha256(str(self.seed).encode()).digest()[0]
        if first % 5 == 1:
            raise RuntimeError("lost the result")
        return {"luck": math.inf if first % 5 == 0 else float(first % 2 == 0)}


class Closed(Luck):
    """Never begins."""

    def reset(self, row, seed):
        """Raise."""
        raise OSError("the shop is closed")
