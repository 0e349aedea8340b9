"""One file per revision of the prediction log's tables, oldest first."""
