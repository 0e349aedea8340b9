"""Run the revisions on the connection of `prediction_upgrade`, inside the transaction that it has begun."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
