"""The results of runs as tables, as figures and on a page, from the run records alone."""
