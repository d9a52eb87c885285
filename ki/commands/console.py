"""The operator's page in a browser: what the robot sees and does, and the buttons to start and stop it."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Serve the operator's page: what the robot sees and does, and the buttons to run and stop it.")


@app.command()
def console(
    robot: Annotated[str, typer.Option(help='Robot contract: a name of config/robots, or a YAML file.')],
    host: Annotated[str, typer.Option(help='Address to serve on; one that other machines reach needs a token.')] = (
        '127.0.0.1'
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help='Port to serve on; 0 takes a free one.')] = 8765,
    token_file: Annotated[
        str, typer.Option(help='File with the token that a browser must bring; made where there is none.')
    ] = '',
    certificate: Annotated[str, typer.Option(help='TLS certificate, a PEM file.')] = '',
    private_key: Annotated[str, typer.Option(help='Its private key, unless the certificate holds it.')] = '',
    namespace: Annotated[str, typer.Option(help='Namespace of the robot.')] = '',
) -> None:
    """Runs the console of a robot whose nodes run already, until Ctrl-C."""
    from ki.stack.node_parameters import check_parameters
    from ki_policy_node.common.ros import use_dds_profile

    values = {'robot': robot, 'host': host, 'port': port, 'token_file': token_file}
    values |= {'certificate': certificate, 'private_key': private_key}
    check_parameters('console', values, 'ki console')
    use_dds_profile()
    from ki_policy_node.console.console_node import main

    given = [part for name, value in values.items() if value != '' for part in ('-p', f'{name}:={value}')]
    raise typer.Exit(main(['--ros-args', *given, '-r', f'__ns:=/{namespace.strip("/")}']))
