"""Reinforcement learning with groups of rollouts: phases of episodes, batches, loss, trainer."""
