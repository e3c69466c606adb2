"""How several processes train together, as far as a recipe's settings can say it."""
