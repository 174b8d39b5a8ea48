"""From run folders to tables, comparisons, figures and the report, beside the papers' numbers.

Reads saved files only: nothing here trains, and nothing imports models or datasets.
"""
