"""Records and results.csv, the one file that every table, plot and claim is derived from."""
