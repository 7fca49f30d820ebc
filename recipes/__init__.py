"""Short runs of each algorithm, and the command line that starts them."""
