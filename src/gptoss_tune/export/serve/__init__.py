"""Files and commands that serve a model: one module a server, from a model's facts to texts."""
