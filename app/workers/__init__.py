"""Several processes behind one port: a parent in the middle of a star, and workers that each run a whole server.

::

    subscription_router   which workers have subscribers, and which must forward to them; pure
    messages              the messages between parent and worker, and their bytes; pure
    metric_families       the metrics of several processes as those of one; pure
    metrics_aggregator    one scrape, asked of all workers
    channel               a socket between parent and worker, bounded both ways
    supervisor            starts the workers, accepts connections and hands them out, keeps the router
    parent_link           the worker's end of the channel: its hub's bus, its scrapes
    worker                uvicorn, on connections that are handed to it

No module here knows what a worker serves: ``app.serve`` puts a server into it.
"""
