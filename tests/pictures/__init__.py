"""The README's pictures of the dashboards, from demo data, without a Grafana server. `python -m tests.pictures` makes
them.
"""
