"""Alembic's environment for the prediction log; willis/stores/prediction_upgrade.py runs it.

A revision is one file in versions/, numbered and written by hand; old logs need it for ever, so it never
changes. It comes with the same change in prediction_tables.py and with `HEAD` raised. It must leave a replica
of the release before able to append (a new column is nullable or has a server default), because replicas are
replaced one after another. There is no way down: going back is restoring a backup.
"""
