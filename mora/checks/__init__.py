"""Shared code of the check scripts: runs that try out a machine, and their outcomes."""
