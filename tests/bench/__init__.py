"""Benchmarks: what the product costs, beside what nothing less could cost, in one run."""
