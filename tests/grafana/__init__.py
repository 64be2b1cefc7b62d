"""The dashboards without a Grafana: what it would ask is asked here, and what comes back is computed anew."""
