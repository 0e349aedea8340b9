"""Mortality of real patients from the table alone: the network's clinical branch beside classical models.

__main__ -> contest (who answers which fold of which task; resumes)
              |-> patients  obtains the Copenhagen Stroke Study, cuts its follow-up at a horizon
                              `-> rda.py  reads R's data, in the environment of the survival forest
"""
