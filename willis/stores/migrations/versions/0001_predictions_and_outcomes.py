"""The tables of 0.1.0: predictions and outcomes."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make both tables and the indexes by time and by patient."""
    _create_predictions()
    _create_outcomes()


def _create_predictions() -> None:
    op.create_table(
        "predictions",
        sa.Column("prediction_id", sa.String(40), primary_key=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("bundle_version", sa.String(64), nullable=False),
        sa.Column("patient", sa.String(64)),
        sa.Column("site", sa.String(128)),
        sa.Column("scanner", sa.String(128)),
        sa.Column("modalities_used", sa.JSON, nullable=False),
        sa.Column("probability", sa.Float, nullable=False),
        sa.Column("probability_raw", sa.Float, nullable=False),
        sa.Column("prediction_set", sa.JSON, nullable=False),
        sa.Column("attribution", sa.JSON, nullable=False),
        sa.Column("table", sa.JSON, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
        sa.Column("report", sa.JSON, nullable=False),
        sa.Column("report_text", sa.Text),
        sa.Column("report_writer", sa.String(32)),
        sa.Column("report_model", sa.String(256)),
        sa.Column("report_prompt_hash", sa.String(64)),
        sa.Column("grounding_score", sa.Float),
        sa.Column("feature_times", sa.JSON, nullable=False),
        sa.Column("embedding", sa.LargeBinary, nullable=False),
        sa.Column("answer", sa.Text, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
    )
    op.create_index("predictions_by_time", "predictions", ["created_at"])
    op.create_index("predictions_by_patient", "predictions", ["patient"])


def _create_outcomes() -> None:
    op.create_table(
        "outcomes",
        sa.Column(
            "prediction_id", sa.String(40), sa.ForeignKey("predictions.prediction_id"), primary_key=True
        ),
        sa.Column("mrs_90d", sa.Integer, nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), nullable=False),
    )
