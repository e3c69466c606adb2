"""Several adapters beside one base: their names, and the bundle that serves them."""
