"""Sends packets that no library would send by itself, and prints what comes back."""

import socket
import struct
import sys

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype

server = (sys.argv[1], int(sys.argv[2]))


def query(name="www.example.com", rdtype="A", **kwargs):
    return dns.message.make_query(name, rdtype, id=0x1234, **kwargs).to_wire()


def udp(packet, wait=2.0):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(wait)
        s.sendto(packet, server)
        try:
            return s.recv(65535)
        except TimeoutError:
            return None


def tcp(packet, wait=2.0):
    with socket.create_connection(server, timeout=wait) as s:
        s.sendall(struct.pack("!H", len(packet)) + packet)
        try:
            head = s.recv(2)
            if len(head) < 2:
                return None
            want, data = struct.unpack("!H", head)[0], b""
            while len(data) < want:
                data += s.recv(want - len(data))
            return data
        except TimeoutError:
            return None


def counts(packet, *numbers):
    return packet[:4] + struct.pack("!HHHH", *numbers) + packet[12:]


QUESTION = dns.name.from_text("www.example.com").to_wire() + b"\x00\x01\x00\x01"
OPT = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00"
HEADER = b"\x12\x34\x01\x00" + struct.pack("!HHHH", 1, 0, 0, 0)
RESPONSE = HEADER[:2] + b"\x81\x80" + HEADER[4:]

CASES = {
    "a query": query(),
    "a response": RESPONSE + QUESTION,
    "eleven octets": HEADER[:11],
    "no question (RFC 9619)": counts(HEADER, 0, 0, 0, 0),
    "two questions (RFC 9619)": counts(HEADER, 2, 0, 0, 0) + QUESTION + QUESTION,
    "an octet too many": query() + b"\x00",
    "a pointer in the question": HEADER + b"\x03www\xc0\x0c\x00\x01\x00\x01",
    "a label of 64 octets": HEADER + b"\x40" + b"x" * 64 + b"\x00\x00\x01\x00\x01",
    "a name of 256 octets": HEADER + b"\x3f" + b"x" * 63 + (b"\x3f" + b"y" * 63) * 2 + b"\x3e" + b"z" * 62 + b"\x00\x00\x01\x00\x01",
    "OPT not at the root (RFC 6891 6.1.1)": counts(HEADER, 1, 0, 0, 1) + QUESTION + b"\x01a" + OPT,
    "two OPT records (RFC 6891 6.1.1)": counts(HEADER, 1, 0, 0, 2) + QUESTION + OPT + OPT,
    "OPT in the answer section": counts(HEADER, 1, 1, 0, 0) + QUESTION + OPT,
    "OPT in the authority section": counts(HEADER, 1, 0, 1, 0) + QUESTION + OPT,
    "opcode STATUS": HEADER[:2] + b"\x11\x00" + HEADER[4:] + QUESTION,
    "opcode UPDATE": HEADER[:2] + b"\x29\x00" + HEADER[4:] + QUESTION,
    "opcode 15 with all flags": HEADER[:2] + b"\x7f\xf0" + b"\x00" * 8,
    "no question but EDNS": counts(HEADER, 0, 0, 0, 1) + OPT,
    "EDNS version 1 (RFC 6891 6.1.3)": counts(HEADER, 1, 0, 0, 1) + QUESTION + b"\x00\x00\x29\x04\xd0\x00\x01\x00\x00\x00\x00",
    "AXFR": query(rdtype="AXFR"),
    "IXFR": query(rdtype="IXFR"),
    "class NONE": HEADER + QUESTION[:-2] + b"\x00\xfe",
    "class CHAOS": HEADER + dns.name.from_text("version.bind").to_wire() + b"\x00\x10\x00\x03",
    "an unknown type (RFC 3597)": query(rdtype="TYPE65280"),
    "an unknown option": query(use_edns=0, options=[dns.edns.GenericOption(65001, b"hello")]),
    "a cookie of 7 octets (RFC 7873 5.2.2)": query(use_edns=0, options=[dns.edns.GenericOption(10, b"1234567")]),
    "ANY (RFC 8482)": query(rdtype="ANY"),
    "Z, AD and CD set": HEADER[:2] + b"\x01\x70" + HEADER[4:] + QUESTION,
}


def describe(reply):
    if reply is None:
        return "silence"
    reply = reply[:2] + bytes([reply[2] & 0x87]) + reply[3:]  # dnspython does not know opcode 15
    m = dns.message.from_wire(reply, ignore_trailing=False, raise_on_truncation=False)
    words = [dns.rcode.to_text(m.rcode()), dns.flags.to_text(m.flags & ~dns.flags.QR).replace(" ", "+").lower() or "-"]
    if m.edns >= 0:
        words.append(f"edns={m.payload}")
    if reply[3] & 0x40:
        words.append("Z")
    if m.id != 0x1234:
        words.append("another ID")
    words += sorted(dns.rdatatype.to_text(r.rdtype) for r in m.answer)
    return " ".join(words)


for name, packet in CASES.items():
    quiet = name in ("a response", "eleven octets")
    print(f"{name}: {describe(udp(packet, 0.3 if quiet else 2.0))} / {describe(tcp(packet, 0.3 if quiet else 2.0))}")
