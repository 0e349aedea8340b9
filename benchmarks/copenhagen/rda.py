"""Read the one table of an R data file: `python rda.py FILE OUT.parquet`.

Runs in the environment of benchmarks/rivals/requirements/survival_forest.txt; factors become words.
"""

import sys

import pyreadr

((_, table),) = pyreadr.read_r(sys.argv[1]).items()
factors = table.select_dtypes("category").columns
table.astype(dict.fromkeys(factors, str)).to_parquet(sys.argv[2], index=False)
