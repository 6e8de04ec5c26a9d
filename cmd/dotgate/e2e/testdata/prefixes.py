"""Asks the same server often from several IPv6 addresses, and prints what each got."""

import socket
import sys
import time

import dns.flags
import dns.message
import dns.rcode

server, rounds = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
query = dns.message.make_query("localhost", "AAAA").to_wire()

for source in sys.argv[4:]:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
        s.bind((source, 0))
        s.settimeout(0.5)
        for _ in range(rounds):
            s.sendto(query, server)
        got = {"answered": 0, "truncated": 0, "refused": 0}
        try:
            while sum(got.values()) < rounds:
                m = dns.message.from_wire(s.recv(65535), raise_on_truncation=False)
                if m.flags & dns.flags.TC:
                    got["truncated"] += 1
                elif m.rcode() == dns.rcode.REFUSED:
                    got["refused"] += 1
                else:
                    got["answered"] += 1
        except TimeoutError:
            pass
        print(source, " ".join(f"{what}={n}" for what, n in got.items()))
