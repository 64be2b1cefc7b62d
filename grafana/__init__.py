"""Grafana's dashboards as source: ``python -m grafana`` writes them to ``grafana/dashboards``.

    panels      what any dashboard is made of: panels, queries, variables, and the grid they lie on
    zoom        the part of a query that reads the aggregate which suits the range
    choices     the choice of sensors at a dashboard's head
    fleet, sensor, compare, ingest, database    a dashboard each

What it looks like in Grafana and what stands here are the same thing: edited there, nothing is kept. Datasources, alert
rules and the folder are in ``grafana/provisioning``, written by hand.
"""
