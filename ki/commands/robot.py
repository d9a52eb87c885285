"""Describe a robot: draft its contract from its own files, and check one, also against the robot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help='Describe a robot: draft a contract from its URDF, check one, also against the robot.')


@app.command()
def new(
    urdf: Annotated[Path, typer.Option(help='URDF of the robot, or a .xacro where xacro is installed.')],
    controllers: Annotated[
        Path | None, typer.Option(help='Parameters of its ros2_control (ros2_controllers.yaml).')
    ] = None,
    joint_limits: Annotated[Path | None, typer.Option(help='Its joint_limits.yaml; the tighter limits hold.')] = None,
    out: Annotated[Path | None, typer.Option(help='Where to write it; else NAME.yaml here.')] = None,
    arg: Annotated[list[str] | None, typer.Option(help='NAME:=VALUE for xacro; may be repeated.')] = None,
) -> None:
    """Writes a commented contract: joints, limits, controllers and rates, and what has to be looked at."""
    from ki.support.robot_files import expanded, new_contract

    text, name = new_contract(expanded(urdf, arg or []), urdf.name, controllers, joint_limits)
    path = out or Path(f'{name}.yaml')
    if path.exists():
        raise typer.BadParameter(f'{path} exists; name another file with --out, or remove it.')
    path.write_text(text, encoding='utf-8')
    asked = [line.strip() for line in text.splitlines() if '# CHECK: ' in line]
    print(f'{path} is written; {len(asked)} lines to look at:')
    for line in asked:
        print(f'  {line}')


@app.command()
def check(
    robot: Annotated[str, typer.Argument(help='Contract: a YAML file, or a name of config/robots.')],
    urdf: Annotated[Path | None, typer.Option(help='Its URDF: limits are compared.')] = None,
    joint_limits: Annotated[Path | None, typer.Option(help='Its joint_limits.yaml: limits are compared.')] = None,
    live: Annotated[bool, typer.Option('--live', help='Compare with what the robot publishes.')] = False,
    seconds: Annotated[float, typer.Option(help='How long to listen.')] = 3.0,
    wait: Annotated[float, typer.Option(help='Seconds to wait for the robot.')] = 5.0,
    namespace: Annotated[str, typer.Option(help="Of the robot's topics.")] = '',
    sim_time: Annotated[bool, typer.Option('--sim-time', help='Take the time from /clock.')] = False,
) -> None:
    """Does a contract hold, is it within the robot's own limits, does the robot publish what it says?

    Exit status 1 where it does not.
    """
    from ki.doctor.doctor_data import COLOURS, LiveSource
    from ki.support.robot_files import findings_of, summary_of
    from ki_robot.contract.contract import load_contract

    contract = load_contract(robot)
    print(summary_of(contract))
    source = LiveSource(seconds, wait, namespace, sim_time) if live else None
    found = findings_of(contract, [each for each in (urdf, joint_limits) if each is not None], source)
    for finding in found:
        typer.secho(f'{finding.level:>8}  ', fg=COLOURS[finding.level], nl=False)
        print(finding.text)
    serious = any(finding.level == 'error' for finding in found)
    print('It does not fit this robot.' if serious else 'Nothing against it.' if not found else 'It holds.')
    raise typer.Exit(code=1 if serious else 0)
