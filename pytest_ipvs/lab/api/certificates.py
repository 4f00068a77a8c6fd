"""A certificate of our own for one run: an EC key, a CA and a server certificate, written in DER.

Standard library only, and without the openssl tool, which stock images often lack. The arithmetic
is plain Python on P-256: some milliseconds, once. Never for anything but a lab on loopback.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import secrets
import time
from dataclasses import dataclass

# The curve P-256 (FIPS 186-4, D.1.2.3).
_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_G = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point = tuple[int, int]

_EC_PUBLIC_KEY = "1.2.840.10045.2.1"
_PRIME256V1 = "1.2.840.10045.3.1.7"
_ECDSA_SHA256 = "1.2.840.10045.4.3.2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """PEM texts: the CA for clients, and the server's certificate with its private key."""

    authority: str
    certificate: str
    key: str


def make_certificate(host: str, *, days: int = 3650) -> ServerCertificate:
    """A CA and a certificate for ``host`` (an address or name), localhost and 127.0.0.1."""
    authority_key, server_key = _random_scalar(), _random_scalar()
    authority_point, server_point = _multiply(authority_key, _G), _multiply(server_key, _G)
    authority_id, server_id = _key_id(authority_point), _key_id(server_point)
    critical = _tlv(1, b"\xff")
    authority = _certificate(
        "pytest-ipvs lab CA",
        authority_point,
        "pytest-ipvs lab CA",
        authority_key,
        days,
        [
            _sequence(_oid("2.5.29.19"), critical, _octets(_sequence(_tlv(1, b"\xff")))),
            # keyCertSign and cRLSign.
            _sequence(_oid("2.5.29.15"), critical, _octets(_tlv(3, b"\x01\x06"))),
            _sequence(_oid("2.5.29.14"), _octets(_octets(authority_id))),
        ],
    )
    server = _certificate(
        "pytest-ipvs lab",
        server_point,
        "pytest-ipvs lab CA",
        authority_key,
        days,
        [
            _sequence(_oid("2.5.29.19"), critical, _octets(_sequence())),
            # digitalSignature.
            _sequence(_oid("2.5.29.15"), critical, _octets(_tlv(3, b"\x07\x80"))),
            _sequence(_oid("2.5.29.37"), _octets(_sequence(_oid("1.3.6.1.5.5.7.3.1")))),
            _sequence(_oid("2.5.29.14"), _octets(_octets(server_id))),
            _sequence(_oid("2.5.29.35"), _octets(_sequence(_tlv(0x80, authority_id)))),
            _sequence(_oid("2.5.29.17"), _octets(_sequence(*_names(host)))),
        ],
    )
    private = _sequence(
        _integer(1),
        _octets(server_key.to_bytes(32)),
        _tlv(0xA0, _oid(_PRIME256V1)),
        _tlv(0xA1, _bits(_encoded(server_point))),
    )
    return ServerCertificate(
        authority=_pem("CERTIFICATE", authority),
        certificate=_pem("CERTIFICATE", server),
        key=_pem("EC PRIVATE KEY", private),
    )


# Elliptic curve


def _random_scalar() -> int:
    return secrets.randbelow(_N - 1) + 1


def _multiply(scalar: int, point: Point) -> Point:
    """``scalar`` times ``point``; inside in Jacobian coordinates, which need no inversions."""
    x2, y2 = point
    x, y, z = 0, 1, 0
    for bit in bin(scalar)[2:]:
        if z:
            x, y, z = _double(x, y, z)
        if bit == "0":
            continue
        if not z:
            x, y, z = x2, y2, 1
            continue
        zz = z * z % _P
        h = (x2 * zz - x) % _P
        r = (y2 * z * zz - y) % _P
        if not h:
            # Only the neutral point and doublings of the last step come here: never for
            # scalars below the order, but wrong keys would be worse than an error.
            raise ArithmeticError("P-256: degenerate addition")
        hh = h * h % _P
        hhh, v = h * hh % _P, x * hh % _P
        x_new = (r * r - hhh - 2 * v) % _P
        x, y, z = x_new, (r * (v - x_new) - y * hhh) % _P, z * h % _P
    inverse = pow(z, -1, _P)
    square = inverse * inverse % _P
    return x * square % _P, y * square * inverse % _P


def _double(x: int, y: int, z: int) -> tuple[int, int, int]:
    delta, gamma = z * z % _P, y * y % _P
    beta = x * gamma % _P
    alpha = 3 * (x - delta) * (x + delta) % _P
    x_new = (alpha * alpha - 8 * beta) % _P
    y_new = (alpha * (4 * beta - x_new) - 8 * gamma * gamma) % _P
    return x_new, y_new, 2 * y * z % _P


def _sign(key: int, data: bytes) -> bytes:
    digest = int.from_bytes(hashlib.sha256(data).digest())
    while True:
        nonce = _random_scalar()
        point = _multiply(nonce, _G)
        r = point[0] % _N
        s = pow(nonce, -1, _N) * (digest + r * key) % _N
        if r and s:
            return _sequence(_integer(r), _integer(s))


def _encoded(point: Point) -> bytes:
    return b"\x04" + point[0].to_bytes(32) + point[1].to_bytes(32)


def _key_id(point: Point) -> bytes:
    return hashlib.sha1(_encoded(point), usedforsecurity=False).digest()


# DER


def _tlv(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size) + content


def _sequence(*items: bytes) -> bytes:
    return _tlv(0x30, b"".join(items))


def _integer(value: int) -> bytes:
    return _tlv(0x02, value.to_bytes(value.bit_length() // 8 + 1))


def _octets(content: bytes) -> bytes:
    return _tlv(0x04, content)


def _bits(content: bytes) -> bytes:
    return _tlv(0x03, b"\0" + content)


def _oid(dotted: str) -> bytes:
    first, second, *rest = (int(part) for part in dotted.split("."))
    content = bytes((40 * first + second,))
    for number in rest:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.append(0x80 | (number & 0x7F))
        content += bytes(reversed(groups))
    return _tlv(0x06, content)


def _name(common_name: str) -> bytes:
    attribute = _sequence(_oid("2.5.4.3"), _tlv(0x0C, common_name.encode()))
    return _sequence(_tlv(0x31, attribute))


def _names(host: str) -> list[bytes]:
    found: dict[bytes, None] = {}
    for name in (host, "127.0.0.1", "localhost"):
        try:
            found[_tlv(0x87, ipaddress.ip_address(name).packed)] = None
        except ValueError:
            found[_tlv(0x82, name.encode("idna"))] = None
    return list(found)


def _time(moment: float) -> bytes:
    return _tlv(0x18, time.strftime("%Y%m%d%H%M%SZ", time.gmtime(moment)).encode())


def _certificate(
    subject: str, point: Point, issuer: str, issuer_key: int, days: int, extensions: list[bytes]
) -> bytes:
    algorithm = _sequence(_oid(_ECDSA_SHA256))
    moment = time.time()
    # Years to 2049 must be written in the short form.
    validity = _sequence(*(_short_time(at) for at in (moment - 3600, moment + days * 86400)))
    public = _sequence(_sequence(_oid(_EC_PUBLIC_KEY), _oid(_PRIME256V1)), _bits(_encoded(point)))
    unsigned = _sequence(
        _tlv(0xA0, _integer(2)),
        _integer(secrets.randbits(120)),
        algorithm,
        _name(issuer),
        validity,
        _name(subject),
        public,
        _tlv(0xA3, _sequence(*extensions)),
    )
    return _sequence(unsigned, algorithm, _bits(_sign(issuer_key, unsigned)))


def _short_time(moment: float) -> bytes:
    if time.gmtime(moment).tm_year >= 2050:
        return _time(moment)
    return _tlv(0x17, time.strftime("%y%m%d%H%M%SZ", time.gmtime(moment)).encode())


def _pem(label: str, data: bytes) -> str:
    text = base64.b64encode(data).decode()
    lines = [text[index : index + 64] for index in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
