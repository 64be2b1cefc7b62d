"""The parts that know SQL, against real servers of every edition that the machine has."""
