"""Commands on a tuned model: merge, verify, serve, push, talk to it, grade it."""
