"""A run, or several, as one page: figures drawn here, facts, samples; read from the run's files.

No server: the page is written at the end of a run and by ``gptoss-tune report``.
"""
