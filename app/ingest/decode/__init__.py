"""Bytes to readings, one file a format. Pure: no I/O and no clock; "now" comes in as an argument.

``reading`` takes one, ``readings`` takes many: each format's file makes columns of a body, ``columns`` checks them.
"""
