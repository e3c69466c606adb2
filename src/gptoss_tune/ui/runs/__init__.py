"""The runs: all below a folder (``found``), one while it trains (``live``), pages (``routes``)."""
