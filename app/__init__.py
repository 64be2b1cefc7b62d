"""SensorFlow: an ingestion server for sensor readings on TimescaleDB.

A reading's journey, and the module that owns each leg of it. A single reading comes past ASGI::

    bytes on a socket      web.protocol          ``Exchange`` gathers a request within bounds, and waits for its turn
      -> a body            web.write_single      a key is checked before the body is read
      -> a Reading         ingest.decode         ``reading``: straight code for JSON of the usual form

Many readings come through uvicorn and FastAPI::

    bytes on a socket      web.protocol          hands the request to uvicorn; web.measure times it; FastAPI routes it
      -> a body            web.write_bulk        a key is checked; web.bodies reads within a deadline
      -> an identity       web.idempotency       if the request has an Idempotency-Key: is there a result of it?
      -> a Batch           ingest.decode         each format makes columns, and ``columns.validate`` checks the rows

From there both go the same way, with readings of files (imports.importer)::

    a WriteRequest         ingest.service        the one way in: ``WriteService.write``, or ``submit`` with a callback
      -> the buffer        ingest.buffer         ``Pipeline.submit`` puts it there; full means 429 or 503
      -> a flush           ingest.pipeline       the task ``Pipeline.run`` takes all that came during the last flush
      -> ids for names     store.names           looked up, or added, by ``Writer.prepare``
      -> rows              store.rows            in COPY's binary format (store.wire); store.limits finds violations
      -> a transaction     store.writer          ledger row, COPY (store.copy), records (store.idempotency), COMMIT
      -> a result          ingest.result         a CommittedReading, whose JSON is the receipt, or a BatchResult
      -> the sender        web                   ``Submission.answer`` calls back; the route renders 201
      -> the subscribers   live.hub, web.live    each through a mailbox of its own
      -> other processes   live.bus, workers     if the server has several, and they have subscribers

And the way back::

    a request              web.query             a key is checked, and the number of queries at a time
      -> a query           history.query         sensors, span, bucket, metrics; the row after which it continues
      -> pages of rows     store.history         each by one short query, on a connection that is then given back
      -> bytes             history.formats       JSON, NDJSON, CSV or Arrow, a column at a time

In the background::

    the latest readings    store.latest          of each sensor, some seconds behind
    readings out of limits store.limits          found in each flush, and logged in its transaction
    what is seen of it     store.observer        sizes, clocks, and how the maintenance goes
    everything else        store.maintenance     by one process of all servers, within a store.budget (store.works):
      aggregates           store.aggregates      by minute, hour and day (store.tiers)
      chunks               store.chunks          made ahead of a fast fleet, and merged when they are old
      rows in them         store.columnstore     converted beside writers
      old readings         store.retention       deleted, once the aggregates have them
      old senders, records store.pruning         deleted

Around a connection::

    to a client            web.protocol          HTTP, and web.websocket; both parse in turns, by web.slices
      -> its bounds        web.connections       how many there are; web.bodies has the deadlines
      -> its end           web.transport         no answer is lost by a close; draining orders the steps of a stop
      -> its refusals      web.refusals          a log line for each sender (logs)
    to the database        store.database        pool, schema and roles; store.session inspects each new connection
      -> what it may use   store.capacity        connections and locks, compared at the start
      -> what it promises  store.durability      whether a visible commit is confirmed
      -> its own server    store.embedded        without DATABASE_URL; store.postmaster finds its process
    a locked part          ingest.blocked        its readings wait aside; the others are stored

Commands: ``imports`` reads files, whose readings go through the same buffer; ``migrate --adopt``, ``move`` and
``refresh`` are ``store.adoption``, ``store.move`` and ``store.refresh``.

The metrics of a reading are defined in ``schema``, from which columns, SQL and keys of JSON are derived.
What the server knows of a sensor besides its readings is in ``registry``, ``store.sensors`` and ``web.sensors``.

Three protocols are the seams between layers, and ``main`` fills them: the pipeline's ``Store`` is
``store.writer.Writer``, its ``Publisher`` is ``live.hub.Hub``, and the service's ``StoredRecords`` is
``store.idempotency.IdempotencyRecords``.

A number in brackets after a promise, such as (3), is that of docs/guarantees.md.

Imports run downward only: ``serve`` runs one process or several; ``imports`` knows ``main``, which puts a process's
components together; ``workers`` knows ``live``; ``web`` and ``live`` know ``ingest``; ``web`` and ``store`` know
``history`` and ``registry``; ``ingest`` and ``store`` know ``errors``, which has the tree of failures. Their HTTP
answers are in ``web.error_responses``. ``settings`` is read once; components take plain values.
"""

__version__ = "0.6.0"
"""The version, by semantic versioning. pyproject.toml, /docs and /health read it here."""
