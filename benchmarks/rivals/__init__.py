"""Rivals from outside, each in an environment of its own, on the folds that Willis is tested on.

    __main__ -> race (who runs on which fold; resumes; rows)
                  |-> handout       what a rival may see of one fold
                  |-> environments  one virtual environment per rival, and its script run in it

The scripts (xgboost.py, lightgbm.py, ...) and given.py run in a rival's own environment: they import its
library, numpy, pandas and scikit-learn, nothing of Willis.
"""
