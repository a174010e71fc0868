"""Ways into a data set: readers of tables and containers, and what any of them can be given besides."""
