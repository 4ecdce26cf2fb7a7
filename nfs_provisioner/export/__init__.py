"""One export: names on it, its records, and the processes that touch it."""
