"""The experts that get an adapter: counted on the run's own data, chosen, and kept for good.

``load`` counts, ``counting`` runs the base over the data once and keeps the counts, ``choice`` says
which experts a run trains, on what grounds, and holds its continuations to them.
"""
