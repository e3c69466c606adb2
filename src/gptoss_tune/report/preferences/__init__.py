"""A preference run on the page: what its method was, its curves, its pairs before and after.

- ``method``: the method and its reference in words, for the page and for the card on the Hub.
- ``curves``: margins, accuracy, log-probabilities, drift and KL by step, and the headline figures.
- ``pairs``: both answers of some pairs side by side, with their log-probabilities before and after.
"""
