"""The report: everything measured as a static site, with figures for print, from the same results as the tables."""
