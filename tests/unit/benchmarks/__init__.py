"""The parts of the benchmark that have laws."""
