"""The run: a resolved recipe in, an adapter and the record of its making out.

``python -m gptoss_tune.train RECIPE`` (under ``accelerate launch``) and ``gptoss-tune train`` both
end in ``run.train``.
"""
