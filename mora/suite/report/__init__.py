"""The report: everything measured as a static site, with the print figures, from the same results as the tables."""
