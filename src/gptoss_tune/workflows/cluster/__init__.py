"""Texts of job files: ``job`` what all share, and a file for each system that starts machines.

``slurm`` runs on the disk of this machine, which every node sees. ``skypilot``, ``kubernetes``,
``hf_jobs`` and ``sagemaker`` run elsewhere: their file carries the recipe, sends or names the files
that it reads, installs the package, and keeps the run where it outlives the machine. A token is
named and never written.
"""
