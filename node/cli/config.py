"""`kith config show`: what counts, and where it came from."""

from pathlib import Path
from typing import Annotated

import typer

from node.cli import output, session

group = typer.Typer(help="The settings of a node.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    app.add_typer(group, name="config")


@group.command("show")
def show(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="Read this file instead of DIR/node.toml.")
    ] = None,
    as_json: session.Json = False,
) -> None:
    """Print every setting, its value and where the value came from."""
    from node.cli.settings import SETTINGS, load_config

    folder = session.data_dir(ctx)
    config = load_config(folder, {}, file=file)
    values = {setting.name: getattr(config, setting.name) for setting in SETTINGS}
    if as_json:
        settings = {
            name: {"value": list(value) if isinstance(value, tuple) else value, "origin": config.origins[name]}
            for name, value in values.items()
        }
        output.emit({"data_dir": str(folder), "settings": settings})
        return
    print(f"data directory: {folder}\n")
    rows = [[name, _shown(value), config.origins[name]] for name, value in values.items()]
    columns = [output.Column("setting"), output.Column("value", "fold"), output.Column("from", "fold")]
    output.table(columns, rows)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "–"
    return str(value) if value != "" else "–"
