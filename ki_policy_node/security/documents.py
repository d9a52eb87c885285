"""Grants as documents: the policy file that `ros2 security` reads, and the XML of DDS-Security 1.1 (9.4.1 and 9.4.2).

On the wire a ROS topic is `rt/NAME`, a service is the pair `rq/NAMERequest` and `rr/NAMEReply`, an action is three
services and two topics below `NAME/_action`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from ki_policy_node.security.grants import ACTION_SERVICES, ACTION_TOPICS, Grants

XSI = 'http://www.w3.org/2001/XMLSchema-instance'
SPECIFICATION = 'http://www.omg.org/spec/DDS-SECURITY/20170901/omg_shared_ca_{}.xsd'
DISCOVERY = 'ros_discovery_info'  # of rmw: which participant holds which nodes


def full_name(name: str, namespace: str, node: str) -> str:
    """`~/state`, `joint_states` or `/clock` from the root."""
    space = '/' + namespace.strip('/') if namespace.strip('/') else ''
    if name.startswith('~/'):
        return f'{space}/{node}/{name[2:]}'
    return name if name.startswith('/') else f'{space}/{name}'


def dds_topics(grants: Grants, namespace: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What an enclave may write and read on the wire, sorted."""

    def full(names: Iterable[str]) -> list[str]:
        return [full_name(name, namespace, grants.node) for name in names]

    writes, reads = [f'rt{name}' for name in full(grants.publishes)], [f'rt{name}' for name in full(grants.hears)]

    def service(name: str, serves: bool) -> None:
        request, reply = (f'rq{name}', f'rr{name}') if name.endswith('*') else (f'rq{name}Request', f'rr{name}Reply')
        (reads if serves else writes).append(request)
        (writes if serves else reads).append(reply)

    for serves, services, actions in (
        (True, grants.serves, grants.serves_actions),
        (False, grants.calls, grants.calls_actions),
    ):
        for name in full(services):
            service(name, serves)
        for name in full(actions):
            for part in ACTION_SERVICES:
                service(f'{name}/_action/{part}', serves)
            (writes if serves else reads).extend(f'rt{name}/_action/{part}' for part in ACTION_TOPICS)
    return tuple(sorted({*writes, DISCOVERY})), tuple(sorted({*reads, DISCOVERY}))


def permissions(enclave: str, grants: Grants, namespace: str, domain: int, valid: tuple[datetime, datetime]) -> bytes:
    """permissions.xml of one enclave: what is listed, and nothing else."""
    from lxml import etree

    root = _document('permissions')
    grant = etree.SubElement(etree.SubElement(root, 'permissions'), 'grant', name=enclave)
    _add(grant, 'subject_name', f'CN={enclave}')
    validity = etree.SubElement(grant, 'validity')
    for tag, when in zip(('not_before', 'not_after'), valid, strict=True):
        _add(validity, tag, when.replace(tzinfo=None, microsecond=0).isoformat())
    rule = etree.SubElement(grant, 'allow_rule')
    _add(etree.SubElement(rule, 'domains'), 'id', str(domain))
    for tag, topics in zip(('publish', 'subscribe'), dds_topics(grants, namespace), strict=True):
        listed = etree.SubElement(etree.SubElement(rule, tag), 'topics')
        for topic in topics:
            _add(listed, 'topic', topic)
    _add(grant, 'default', 'DENY')
    return _text(root)


def governance(domain: int) -> bytes:
    """governance.xml: nobody joins unauthenticated, every topic is under access control and encrypted."""
    from lxml import etree

    root = _document('governance')
    rule = etree.SubElement(etree.SubElement(root, 'domain_access_rules'), 'domain_rule')
    _add(etree.SubElement(rule, 'domains'), 'id', str(domain))
    for tag, value in (
        ('allow_unauthenticated_participants', 'false'),
        ('enable_join_access_control', 'true'),
        ('discovery_protection_kind', 'ENCRYPT'),
        ('liveliness_protection_kind', 'ENCRYPT'),
        ('rtps_protection_kind', 'SIGN'),
    ):
        _add(rule, tag, value)
    topic = etree.SubElement(etree.SubElement(rule, 'topic_access_rules'), 'topic_rule')
    for tag, value in (
        ('topic_expression', '*'),
        ('enable_discovery_protection', 'true'),
        ('enable_liveliness_protection', 'true'),
        ('enable_read_access_control', 'true'),
        ('enable_write_access_control', 'true'),
        ('metadata_protection_kind', 'ENCRYPT'),
        ('data_protection_kind', 'ENCRYPT'),
    ):
        _add(topic, tag, value)
    return _text(root)


def policy(grants: Sequence[Grants], namespace: str) -> bytes:
    """The policy file (0.2.0) of all enclaves: `ros2 security create_permission KEYSTORE ENCLAVE FILE` reads it."""
    from lxml import etree

    root = etree.Element('policy', version='0.2.0')
    enclaves = etree.SubElement(root, 'enclaves')
    for each in grants:
        enclave = etree.SubElement(enclaves, 'enclave', path=full_name(each.node, namespace, each.node))
        space = '/' + namespace.strip('/')
        profile = etree.SubElement(etree.SubElement(enclave, 'profiles'), 'profile', ns=space, node=each.node)
        for tag, item, verb, names in (
            ('topics', 'topic', 'publish', each.publishes),
            ('topics', 'topic', 'subscribe', each.hears),
            ('services', 'service', 'reply', each.serves),
            ('services', 'service', 'request', each.calls),
            ('actions', 'action', 'execute', each.serves_actions),
            ('actions', 'action', 'call', each.calls_actions),
        ):
            if names:
                listed = etree.SubElement(profile, tag, {verb: 'ALLOW'})
                for name in sorted(names):
                    _add(listed, item, name)
    return _text(root)


def _document(kind: str) -> Any:
    from lxml import etree

    root = etree.Element('dds', nsmap={'xsi': XSI})
    root.set(f'{{{XSI}}}noNamespaceSchemaLocation', SPECIFICATION.format(kind))
    return root


def _add(parent: Any, tag: str, text: str) -> None:
    from lxml import etree

    etree.SubElement(parent, tag).text = text


def _text(root: Any) -> bytes:
    from lxml import etree

    return bytes(etree.tostring(root, pretty_print=True, xml_declaration=True, encoding='UTF-8'))
