"""The pair: what the standby does to hold what the active holds."""
