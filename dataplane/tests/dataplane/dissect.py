"""Reads frames, one in hexadecimal digits per line, and writes what scapy makes of each: a JSON list of
its layers. Checksums are computed anew and compared."""
import json
import sys

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, _ICMPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

GUE_PORT = 6080


def checksum_is_right(ip, kind, field):
    """Whether the transport checksum right behind an IP header is what scapy computes."""
    whole = ip.__class__(bytes(ip))
    found = getattr(whole[kind], field)
    if kind is UDP and found == 0:
        return None
    delattr(whole[kind], field)
    return getattr(whole.__class__(bytes(whole))[kind], field) == found


def transport(layer, ip, fragment):
    if isinstance(layer, TCP):
        about = {"layer": "TCP", "sport": layer.sport, "dport": layer.dport, "flags": str(layer.flags)}
        if not fragment:
            about["checksum"] = checksum_is_right(ip, TCP, "chksum")
        return [about]
    if isinstance(layer, UDP):
        about = {"layer": "UDP", "sport": layer.sport, "dport": layer.dport, "length": layer.len,
                 "room": len(bytes(layer)), "sum": layer.chksum}
        if not fragment:
            about["checksum"] = checksum_is_right(ip, UDP, "chksum")
        if layer.dport != GUE_PORT:
            return [about]
        inside = bytes(layer.payload)
        control, protocol = inside[0], inside[1]
        gue = {"layer": "GUE", "variant": control >> 6, "control": control >> 5 & 1,
               "words": control & 31, "protocol": protocol, "flags": inside[2] << 8 | inside[3]}
        body = inside[4 + 4 * (control & 31):]
        return [about, gue] + network(IP(body) if protocol == 4 else IPv6(body))
    if isinstance(layer, ICMP):
        head = bytes(layer)[:8]
        return [{"layer": "ICMP", "type": layer.type, "code": layer.code, "rest": head[4:].hex(),
                 "quote": bytes(layer)[8:].hex(), "checksum": checksum_is_right(ip, ICMP, "chksum")}]
    if isinstance(layer, _ICMPv6):
        head = bytes(layer)[:8]
        return [{"layer": "ICMPv6", "type": layer.type, "code": layer.code, "rest": head[4:].hex(),
                 "quote": bytes(layer)[8:].hex(),
                 "checksum": checksum_is_right(ip, layer.__class__, "cksum")}]
    return []


def network(layer):
    if isinstance(layer, IP):
        again = IP(bytes(layer))
        del again.chksum
        layers = [{"layer": "IP", "src": layer.src, "dst": layer.dst, "tos": layer.tos, "length": layer.len,
                   "room": len(bytes(layer)), "id": layer.id, "flags": str(layer.flags), "offset": layer.frag,
                   "ttl": layer.ttl, "protocol": layer.proto, "ihl": layer.ihl,
                   "checksum": IP(bytes(again)).chksum == layer.chksum}]
        fragment = layer.frag != 0 or "MF" in str(layer.flags)
    elif isinstance(layer, IPv6):
        layers = [{"layer": "IPv6", "src": layer.src, "dst": layer.dst, "tos": layer.tc, "label": layer.fl,
                   "length": layer.plen, "room": len(bytes(layer)) - 40, "ttl": layer.hlim,
                   "protocol": layer.nh}]
        fragment = False
    else:
        return [{"layer": layer.name}]
    inside = layer.payload
    while inside.__class__.__name__.startswith("IPv6ExtHdr"):
        layers.append({"layer": inside.__class__.__name__})
        fragment = fragment or inside.__class__.__name__ == "IPv6ExtHdrFragment"
        inside = inside.payload
    if isinstance(inside, (IP, IPv6)):
        return layers + network(inside)
    return layers + transport(inside, layer, fragment)


def describe(frame):
    layer = Ether(frame)
    layers = [{"layer": "Ether", "src": layer.src, "dst": layer.dst}]
    layer = layer.payload
    while isinstance(layer, (Dot1Q, Dot1AD)):
        layers.append({"layer": "VLAN", "id": layer.vlan})
        layer = layer.payload
    return layers + network(layer)


for line in sys.stdin:
    json.dump(describe(bytes.fromhex(line)), sys.stdout)
    sys.stdout.write("\n")
