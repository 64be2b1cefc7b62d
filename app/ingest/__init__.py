"""From a decoded reading to its receipt: the buffer, the group commit, and what is promised of them."""
