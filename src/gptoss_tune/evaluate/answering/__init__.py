"""How one answer is asked for, whatever computes it; without torch."""
