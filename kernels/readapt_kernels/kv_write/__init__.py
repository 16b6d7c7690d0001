"""Keys and values of a step, into the pages of the pool."""
