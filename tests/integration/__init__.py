"""Tests of the parts that know SQL, on real servers of every edition that the machine has."""
