"""Monitoring: alerts that fire, expressions that name what exists, a Prometheus that scrapes a living controller."""
