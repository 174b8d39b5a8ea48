import os

# Figures are files here. A backend inherited from a notebook may not be installed, and matplotlib
# then fails while it is imported.
os.environ["MPLBACKEND"] = "Agg"
