"""Several processes behind one port: a parent in the middle of a star, and workers that each run a whole server.

::

    switchboard   who listens where, and who must therefore hear whom; pure
    messages      what parent and worker say to each other, and its bytes; pure
    families      the metrics of several processes as those of one; pure
    scrapes       one scrape, asked of all workers
    channel       a socket between parent and worker, bounded both ways
    parent        starts the workers, accepts connections and hands them out, keeps the switchboard
    uplink        the worker's end of the channel: its hub's bus, its scrapes
    worker        uvicorn, on connections that are handed to it

Nothing here knows what a worker serves: ``app.serve`` puts a server into it.
"""
