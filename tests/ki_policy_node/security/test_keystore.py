"""A keystore is whole, signed by its authority, within the schemas of DDS-Security, and refuses what was changed."""

from __future__ import annotations

import stat
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

pytest.importorskip('cryptography')
pytest.importorskip('lxml')

from lxml import etree

from ki_policy_node.errors import NodeError
from ki_policy_node.security import documents, keystore
from ki_policy_node.security.grants import Grants, grants_for
from ki_robot.contract.contract import load_contract

HERE = Path(__file__).resolve().parent
GRANTS = grants_for(load_contract('arm_single'))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    keystore.create(tmp_path / 'keys', GRANTS, 'robot1', 7)
    return tmp_path / 'keys'


def test_every_document_follows_its_schema_and_is_signed(made: Path) -> None:
    schema = {name: etree.XMLSchema(file=str(HERE / f'{name}.xsd')) for name in ('permissions', 'governance')}
    schema['governance'].assertValid(etree.parse(str(made / 'enclaves/governance.xml')))
    enclaves = keystore.enclaves_of(made)
    assert [each.name for each in enclaves] == sorted(GRANTS)
    for each in enclaves:
        document = etree.parse(str(each / 'permissions.xml'))
        schema['permissions'].assertValid(document)
        assert document.findtext('.//subject_name') == f'CN=/robot1/{each.name}'
        assert document.findtext('.//domains/id') == '7'
        assert document.findtext('.//default') == 'DENY'
    assert keystore.check(made) == []


def test_names_are_those_of_the_wire() -> None:
    grants = Grants('n', ('~/a', '/clock'), ('b',), ('~/s',), ('m/t',), ('~/run',), ('g',))
    writes, reads = documents.dds_topics(grants, '/r')
    assert set(writes) == {
        'ros_discovery_info', 'rt/r/n/a', 'rt/clock', 'rr/r/n/sReply', 'rq/r/m/tRequest',
        'rr/r/n/run/_action/send_goalReply', 'rr/r/n/run/_action/cancel_goalReply',
        'rr/r/n/run/_action/get_resultReply',
        'rt/r/n/run/_action/feedback', 'rt/r/n/run/_action/status',
        'rq/r/g/_action/send_goalRequest', 'rq/r/g/_action/cancel_goalRequest', 'rq/r/g/_action/get_resultRequest',
    }  # fmt: skip
    assert {'rt/r/b', 'rq/r/n/sRequest', 'rr/r/m/tReply', 'rt/r/g/_action/feedback'} <= set(reads)


def test_keys_are_kept_when_permissions_are_made_anew(made: Path) -> None:
    before = (made / 'enclaves/robot1/recorder/key.pem').read_bytes()
    keystore.create(made, {'recorder': Grants('recorder')}, 'robot1', 8)
    assert (made / 'enclaves/robot1/recorder/key.pem').read_bytes() == before
    assert '<id>8</id>' in (made / 'enclaves/robot1/recorder/permissions.xml').read_text()
    assert keystore.check(made) == []
    assert stat.S_IMODE((made / 'enclaves/robot1/recorder/key.pem').stat().st_mode) == 0o600
    assert stat.S_IMODE((made / 'private/ca.key.pem').stat().st_mode) == 0o600


def test_what_was_changed_is_named(made: Path, tmp_path: Path) -> None:
    own = made / 'enclaves/robot1/console'
    whole = {name: (own / name).read_bytes() for name in ('permissions.xml', 'permissions.p7s', 'cert.pem', 'key.pem')}

    def check_says(text: str) -> None:
        assert any(line.startswith('/robot1/console: ') and text in line for line in keystore.check(made)), text
        for name, content in whole.items():
            (own / name).write_bytes(content)
        (own / 'key.pem').chmod(0o600)
        assert keystore.check(made) == []

    (own / 'permissions.xml').write_bytes(whole['permissions.xml'].replace(b'DENY', b'ALLOW'))
    check_says('was changed after it was signed')
    (own / 'permissions.p7s').write_bytes(whole['permissions.p7s'].replace(b'DENY', b'ALLOW'))
    check_says('signature of permissions.p7s does not hold')
    keystore.create(tmp_path / 'other', {'console': GRANTS['console']}, 'robot1', 7)
    (own / 'cert.pem').write_bytes((tmp_path / 'other/enclaves/robot1/console/cert.pem').read_bytes())
    check_says('')
    (own / 'cert.pem').write_bytes((made / 'enclaves/robot1/recorder/cert.pem').read_bytes())
    check_says('its certificate is of CN=/robot1/recorder')
    (own / 'key.pem').chmod(0o644)
    check_says('can be read by others')
    late = keystore.check(made, datetime.now(timezone.utc) + timedelta(days=4000))
    assert len(late) >= len(GRANTS)


def test_only_who_has_the_private_key_changes_a_keystore(made: Path) -> None:
    (made / 'private/ca.key.pem').unlink()
    with pytest.raises(NodeError, match='was made elsewhere'):
        keystore.create(made, GRANTS, 'robot1', 7)
    with pytest.raises(NodeError, match='is no keystore'):
        keystore.check(made / 'enclaves')
