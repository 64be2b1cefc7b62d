"""What tests of several folders use: databases, servers, peers, samples. No test stands here."""
