"""Reinforcement in a plan: what playing episodes holds, takes and writes, beside the training."""
