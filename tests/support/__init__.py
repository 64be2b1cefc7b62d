"""Helpers of tests in several folders: databases, servers, peers, samples. No test stands here."""
