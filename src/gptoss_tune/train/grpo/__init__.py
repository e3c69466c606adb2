"""Group relative policy optimisation: advantages, objective and loss, rows of a step, trainer."""
