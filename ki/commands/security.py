"""Keys and permissions (SROS2): who may publish, hear and call what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help='Keys and permissions (SROS2): who may publish, hear and call what.')


@app.callback()
def security() -> None:
    """Keys and permissions (SROS2): who may publish, hear and call what."""


@app.command()
def init(
    keystore: Annotated[Path, typer.Argument(help='Folder to make, or to add to.')],
    robot: Annotated[str, typer.Option(help='Contract of the robot.')] = 'bimanual_mobile',
    namespace: Annotated[str, typer.Option(help="Of the robot's nodes.")] = '',
    domain: Annotated[int | None, typer.Option(help='ROS domain; without it ROS_DOMAIN_ID, or 0.')] = None,
) -> None:
    """Makes a keystore with an enclave for every node of a robot, which may do what it needs and nothing else.

    Keys that are there are kept, permissions are made anew. `policy.xml` beside them says the same for `ros2 security`.
    """
    from ki_common.files import atomic_file
    from ki_policy_node.common.ros import domain_id
    from ki_policy_node.security import documents
    from ki_policy_node.security import keystore as store
    from ki_policy_node.security.grants import grants_for
    from ki_robot.contract.contract import load_contract

    contract = load_contract(robot)
    grants = grants_for(contract)
    number = (domain_id() or 0) if domain is None else domain
    made = store.create(keystore, grants, namespace, number)
    with atomic_file(keystore / 'policy.xml') as file:
        file.write(documents.policy(list(grants.values()), namespace))
    for enclave in made:
        print(f'/{enclave.relative_to(keystore / "enclaves")}')
    print(f'{len(made)} enclaves for {contract.name}, domain {number}. On the robot:')
    print(f'  export KI_SECURITY=enforce ROS_SECURITY_KEYSTORE={keystore.absolute()}')
    print('Copy public/ and enclaves/ there; private/ signs new keys and stays here.')


@app.command()
def check(keystore: Annotated[Path, typer.Argument(help='Folder of the keystore.')]) -> None:
    """Verifies every certificate, key and signature; exit status 1 when one does not hold."""
    from ki_policy_node.security import keystore as store

    wrong = store.check(keystore)
    for line in wrong:
        print(line)
    count = len(store.enclaves_of(keystore))
    print(f'{len(wrong)} problems in {count} enclaves.' if wrong else f'{count} enclaves, all signed and in date.')
    raise typer.Exit(code=1 if wrong else 0)
