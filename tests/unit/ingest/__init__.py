"""From a decoded reading to its receipt, without a database."""
