"""The poster's experiment: many runs, one table, a few figures. In reading order:

grid.py         the runs: the cells, their settings, and the family whose learning rate each takes
zero_shot.py    the two cells without training
search.py       learning rates, chosen on the validation set
estimate.py     the expected running time
reproduce.py    the command that runs the cells one after another
record.py       adds a finished run to results/MODEL: its row in runs.csv, its outputs, its loss curves
slots.py        which of a table's values a text states, omits or invents
summary.py      means and spreads over the seeds of a cell
report.py       the tables and the sheet of samples, from results/MODEL alone
figures.py      the figures

And to look at runs, whichever they are:

attention.py    what a generated word attends to: the weights, and their shares on prefix, table and text
look.py         the command that draws it, and runs' curves beside each other
look_figures.py the pictures
"""
