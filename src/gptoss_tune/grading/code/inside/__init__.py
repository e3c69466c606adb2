"""What runs in the sandbox's own processes: an interpreter with the standard library alone.

``supervisor`` starts the processes, watches them and clears up after them; ``jail`` takes rights
away, with ``syscalls`` and ``landlock``; ``guest`` runs the model's code, ``examiner`` the tests,
in another process; ``wire`` is how the two speak. Nothing here imports from the rest of the
package, and nothing outside the standard library.
"""
