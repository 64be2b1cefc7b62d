"""Grafana's dashboards and alert rules as source: ``python -m grafana`` writes what Grafana reads.

    panels      what any dashboard is made of: panels, queries, variables, and the grid they lie on
    zoom        the part of a query that reads the aggregate which suits the range
    choices     the choice of sensors at a dashboard's head
    fleet, sensor, compare, ingest, database    a dashboard each
    alerts      the alert rules, each beside a panel

What it looks like in Grafana and what stands here are the same thing: edited there, nothing is kept. Datasources and
the folder are in ``grafana/provisioning``, written by hand.
"""
