"""Everything that knows SQL. The rest of the server sees readings, flushes and the errors of ``app.errors``."""
