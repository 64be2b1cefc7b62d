"""The dashboards without a Grafana: the tests send its queries, and compute the answers a second time."""
