"""The poster's experiment: many runs, one table, a few figures. To be read in this order:

grid.py         which runs: the cells, their settings, whose learning rate each takes
zero_shot.py    the two cells in which nothing is trained
search.py       the learning rates, chosen on the validation set
estimate.py     how long it will take
reproduce.py    the command that runs one cell after another
record.py       a finished run becomes a row of results/MODEL/runs.csv, its outputs, its curves
slots.py        which of a table's values a text says, omits, invents
summary.py      the rows by cell: means and spreads over the seeds
report.py       from results/MODEL alone: the tables and the sheet of samples
figures.py      and the figures
"""
