"""The product on one machine: an embedded API server with the parts of Kubernetes that a claim meets, and a demo on it.

Nothing in here runs beside a real cluster. The embedded server may not be kinder than the real one: tests/contract
runs one suite against both.
"""
