"""A keystore as SROS2 lays it out: one authority, and for each enclave a key, a certificate and signed permissions.

    public/ca.cert.pem  identity_ca.cert.pem  permissions_ca.cert.pem      (the last two are links)
    private/ca.key.pem  identity_ca.key.pem   permissions_ca.key.pem       keep these on no robot
    enclaves/governance.xml  governance.p7s
    enclaves/[NAMESPACE/]NODE/   key.pem cert.pem identity_ca.cert.pem permissions_ca.cert.pem
                                 governance.p7s permissions.xml permissions.p7s

Keys are of prime256v1, certificates and signatures of SHA-256 (DDS-Security 1.1, section 9.3.1).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from ki_common.files import atomic_file
from ki_policy_node.errors import NodeError
from ki_policy_node.security import documents
from ki_policy_node.security.grants import Grants

CA, AUTHORITIES = 'ca', ('identity_ca', 'permissions_ca')
AUTHORITY_NAME = 'ki_stack_ca'
VALID = timedelta(days=3650)
MISSING = "This needs cryptography and lxml; write: pip install 'ki_policy_node[security]'."


def create(folder: Path, grants: Mapping[str, Grants], namespace: str, domain: int) -> list[Path]:
    """Makes a keystore, or adds and renews enclaves in one that is there; keys that exist are kept.

    Args:
        folder: Of the keystore.
        grants: By node.
        namespace: Of the robot.
        domain: ROS domain that the permissions are for.

    Returns:
        The folders of the enclaves.

    Raises:
        NodeError: the packages are not installed, or the folder cannot be written.
    """
    try:
        import lxml.etree  # noqa: F401
        from cryptography import x509
    except ImportError as error:
        raise NodeError(MISSING) from error
    try:
        key, certificate = _authority(folder)
        enclaves = folder / 'enclaves'
        governance = documents.governance(domain)
        _write(enclaves / 'governance.xml', governance)
        _write(enclaves / 'governance.p7s', _signed(governance, key, certificate))
        made = []
        for node, each in grants.items():
            enclave = documents.full_name(node, namespace, node)
            own = enclaves / enclave.strip('/')
            if not (own / 'key.pem').is_file() or not (own / 'cert.pem').is_file():
                own_key = _new_key()
                _write_key(own / 'key.pem', own_key)
                _write(own / 'cert.pem', _pem(_certificate(enclave, own_key.public_key(), key, certificate.subject)))
            for name in AUTHORITIES:
                _link(own / f'{name}.cert.pem', folder / 'public' / f'{name}.cert.pem')
            _link(own / 'governance.p7s', enclaves / 'governance.p7s')
            own_certificate = x509.load_pem_x509_certificate((own / 'cert.pem').read_bytes())
            valid = own_certificate.not_valid_before_utc, own_certificate.not_valid_after_utc
            allowed = documents.permissions(enclave, each, namespace, domain, valid)
            _write(own / 'permissions.xml', allowed)
            _write(own / 'permissions.p7s', _signed(allowed, key, certificate))
            made.append(own)
    except OSError as error:
        raise NodeError(f'{folder} cannot be written: {error.strerror}.') from error
    return made


def check(folder: Path, now: datetime | None = None) -> list[str]:
    """What is wrong with a keystore; empty when every enclave is whole, signed and in date.

    Raises:
        NodeError: the folder is no keystore, or the packages are not installed.
    """
    try:
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature
    except ImportError as error:
        raise NodeError(MISSING) from error
    if not (folder / 'public' / f'{CA}.cert.pem').exists():
        raise NodeError(f'{folder} is no keystore: it has no public/{CA}.cert.pem. Make one with: ki security init')
    now = now or datetime.now(timezone.utc)
    authority_file = folder / 'public' / f'{CA}.cert.pem'
    authority = x509.load_pem_x509_certificate(authority_file.read_bytes())
    wrong = []
    for own in enclaves_of(folder):
        name = '/' + own.relative_to(folder / 'enclaves').as_posix()
        try:
            certificate = x509.load_pem_x509_certificate((own / 'cert.pem').read_bytes())
            certificate.verify_directly_issued_by(authority)
            if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
                wrong.append(f'{name}: its certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d}')
            if certificate.subject.rfc4514_string() != f'CN={name}':
                wrong.append(f'{name}: its certificate is of {certificate.subject.rfc4514_string()}')
            if _load_key(own / 'key.pem').public_key() != certificate.public_key():
                wrong.append(f'{name}: key.pem does not belong to cert.pem')
            for document in ('permissions', 'governance'):
                content, plain = verified(own / f'{document}.p7s', authority_file), own / f'{document}.xml'
                if plain.is_file() and plain.read_bytes() != content:
                    wrong.append(f'{name}: {document}.xml was changed after it was signed; run ki security init again')
        except InvalidSignature:
            wrong.append(f'{name}: its certificate is not of this authority')
        except (OSError, ValueError, TypeError) as error:
            wrong.append(f'{name}: {error}')
        mode = (own / 'key.pem').stat().st_mode if (own / 'key.pem').is_file() else 0
        if mode & 0o077:
            wrong.append(f'{name}: key.pem can be read by others; write: chmod 600 {own / "key.pem"}')
    return wrong


def enclaves_of(folder: Path) -> list[Path]:
    """The folders of all enclaves."""
    return sorted(path.parent for path in (folder / 'enclaves').rglob('permissions.xml'))


def verified(signed: Path, authority: Path) -> bytes:
    """The content of an S/MIME signed document, if the authority signed it.

    Raises:
        NodeError: openssl is not installed.
        ValueError: the signature does not hold.
    """
    command = ['openssl', 'smime', '-verify', '-text', '-in', str(signed), '-CAfile', str(authority)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise NodeError('This needs the program openssl; install the package openssl.') from error
    if done.returncode:
        raise ValueError(f'the signature of {signed.name} does not hold')
    return done.stdout.replace(b'\r\n', b'\n')


def _authority(folder: Path) -> tuple[Any, Any]:
    """Key and certificate of the authority; made where there is none."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    key_file, certificate_file = folder / 'private' / f'{CA}.key.pem', folder / 'public' / f'{CA}.cert.pem'
    if not key_file.is_file() or not certificate_file.is_file():
        if certificate_file.is_file():
            raise NodeError(
                f'{key_file} is missing: this keystore was made elsewhere, and only there can it be changed.'
            )
        key = _new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_NAME)])
        _write_key(key_file, key)
        _write(certificate_file, _pem(_certificate(AUTHORITY_NAME, key.public_key(), key, name, authority=True)))
    for each in AUTHORITIES:
        _link(folder / 'public' / f'{each}.cert.pem', certificate_file)
        _link(folder / 'private' / f'{each}.key.pem', key_file)
    return _load_key(key_file), x509.load_pem_x509_certificate(certificate_file.read_bytes())


def _certificate(name: str, public_key: Any, key: Any, issuer: Any, authority: bool = False) -> Any:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    now = datetime.now(timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))  # clocks of robots differ
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=1 if authority else None), critical=authority)
    )
    return builder.sign(key, hashes.SHA256())


def _signed(content: bytes, key: Any, certificate: Any) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

    builder = pkcs7.PKCS7SignatureBuilder().set_data(content).add_signer(certificate, key, hashes.SHA256())
    return builder.sign(Encoding.SMIME, [pkcs7.PKCS7Options.Text, pkcs7.PKCS7Options.DetachedSignature])


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _load_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(path.read_bytes(), None)


def _write_key(path: Path, key: Any) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    path.parent.mkdir(parents=True, exist_ok=True)
    # Never readable by others, not even while it is written.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, 'wb') as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _pem(certificate: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return bytes(certificate.public_bytes(Encoding.PEM))


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))
