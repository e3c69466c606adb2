"""Reading and writing files safely: strict JSON, paths that stay inside, writes whole or absent."""
