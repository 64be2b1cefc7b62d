"""``python -m app import``: files into the database, with a report of what was refused and a bar that moves."""
