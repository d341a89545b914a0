"""Faults on purpose, for scripts/check_faults.py: what is done to runs, suites, files and inputs, and how it is judged."""
