"""`willis reports`: the server behind the report writer, and what people do around reports."""

import typer

reports_app = typer.Typer(
    help="The server behind the report writer, and what people do around reports.", no_args_is_help=True
)


@reports_app.callback()
def reports() -> None:
    """Keep `willis reports` a group, however many commands it has."""
