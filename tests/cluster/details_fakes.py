"""A made-up node's files and programs for the details of nodes."""

from __future__ import annotations

from pathlib import Path

CAPTURES = Path(__file__).parent.parent / "data" / "captures" / "6.12.107+deb13-cloud-amd64"
CONNECTIONS = (CAPTURES / "proc_net_ip_vs_conn.txt").read_text()

UDP = """\
udp      17 25 src=10.1.0.2 dst=10.96.0.53 sport=40001 dport=53 [UNREPLIED] \
src=10.244.0.53 dst=10.1.0.2 sport=53 dport=40001 mark=0 use=1
udp      17 117 src=10.1.0.3 dst=10.96.0.53 sport=40002 dport=53 \
src=10.244.0.53 dst=10.1.0.3 sport=53 dport=40002 [ASSURED] mark=0 use=1
udp      17 9 src=10.1.0.3 dst=10.244.0.53 sport=40003 dport=53 \
src=10.244.0.53 dst=10.1.0.3 sport=53 dport=40003 mark=0 use=1
"""
SYN_SENT = """\
tcp      6 115 SYN_SENT src=10.1.0.2 dst=10.96.0.17 sport=39112 dport=80 [UNREPLIED] \
src=10.244.0.14 dst=10.1.0.2 sport=8089 dport=39112 mark=0 use=1
tcp      6 99 SYN_SENT src=10.1.0.2 dst=10.96.0.17 sport=39110 dport=80 [UNREPLIED] \
src=10.244.0.14 dst=10.1.0.2 sport=8089 dport=39110 mark=0 use=1
tcp      6 99 SYN_SENT src=10.1.0.2 dst=10.96.0.17 sport=39110 dport=80 \
src=10.244.0.15 dst=10.1.0.2 sport=8089 dport=39110 mark=0 use=1
"""

FILES = {
    "proc/modules": "ip_vs_rr 12288 1 - Live 0x0\nip_vs 200704 3 ip_vs_rr, Live 0x0\n",
    "sys/module/ip_set/parameters/max_sets": "0\n",
    "sys/module/nf_conntrack/parameters/hashsize": "65536\n",
    "lib/modules/6.1.0-56-amd64/modules.builtin": (
        "kernel/net/ipv4/tcp_cubic.ko\nkernel/net/netfilter/nf-flow.ko\n"
    ),
    "sys/devices/system/cpu/online": "0-3\n",
    "proc/self/status": "Cpus_allowed_list:\t0-7\n",
    "proc/17/comm": "hyperkube\n",
    "proc/17/cmdline": "/hyperkube\0kubelet\0",
    "proc/42/comm": "kube-proxy\n",
    "proc/42/status": "Name:\tkube-proxy\nCpus_allowed_list:\t0-1,9\n",
    "proc/42/cmdline": "/usr/local/bin/kube-proxy\0--config=/a b\0--v=2\0",
    "etc/sysctl.d/50-ipvs.conf": (
        "# kept\n; too\nnet.ipv4.vs.conn_reuse_mode = 0\n-net/ipv4/vs/drop_entry=0\n"
        "net.ipv4.conf.*.rp_filter = 1\n"
    ),
    "usr/lib/sysctl.d/50-ipvs.conf": "net.ipv4.vs.conn_reuse_mode = 7\n",
    "usr/lib/sysctl.d/10-first.conf": (
        "  net/ipv4/conf/eth0.100/rp_filter  =  2\nkernel.x.*.y = 3\n"
    ),
    "etc/sysctl.conf": "net.ipv4.ip_forward=1\n",
    "proc/net/route": (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0132A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "data0\t0032A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    ),
    "proc/net/ipv6_route": (
        f"{'0' * 32} 00 {'0' * 32} 00 fe80{'0' * 27}1 00000400 1 0 00000003     data0\n"
        f"{'0' * 32} 00 {'0' * 32} 00 {'0' * 32} ffffffff 1 0 00200200       lo\n"
    ),
    "proc/net/if_inet6": "",
    "proc/net/ip_vs_conn": CONNECTIONS,
    "proc/sys/net/netfilter/nf_conntrack_count": "57\n",
    "var/log/pods/kube-system_kube-proxy-x_1/kube-proxy/0.log": (
        "2026-11-21T01:37:04.123456789Z stderr F I1121 01:37:04.123456       1 fine.go:7] ok\n"
        "2026-11-21T01:37:05.123456789Z stderr F E1121 01:37:05.123456       1 proxier.go:9]"
        ' "Failed" err="x"\n'
    ),
    "var/log/kube-proxy.log": (
        '{"log":"E1121 01:37:06.000001       1 proxier.go:9] \\"Again\\"\\n","stream":"stderr"}\n'
    ),
}


def says(text: str, when: str = "") -> str:
    """A program that prints a text; ``when`` is a shell test of its arguments."""
    condition = f'case "$*" in {when}) ;; *) exit 0 ;; esac\n' if when else ""
    return f"#!/bin/sh\n{condition}cat <<'END'\n{text.rstrip()}\nEND\n"


def fails(message: str, status: int = 1) -> str:
    """A program that can't do its work."""
    return f"#!/bin/sh\necho '{message}' >&2\nexit {status}\n"


PROGRAMS = {
    "iptables-save": says((CAPTURES / "iptables-save_c.txt").read_text()),
    "ip6tables-save": says((CAPTURES / "ip6tables-save_c.txt").read_text()),
    "ip6tables-legacy-save": fails("must not be run"),
    "ip6tables-nft-save": fails("must not be run"),
    "ipset": (
        "#!/bin/sh\ncase $1 in --version) echo 'ipset v7.17, protocol version: 7' ;;\n"
        f"*) cat <<'END'\n{(CAPTURES / 'ipset_save.txt').read_text()}END\nesac\n"
    ),
    "iptables": says("iptables v1.8.9 (nf_tables)", "--version"),
    "ipvsadm": says("Timeout (tcp tcpfin udp): 900 120 300", "*--timeout*"),
    "conntrack": says(SYN_SENT + UDP, "*ipv4*"),
    "dmesg": says("[1] boot\n[2] nf_conntrack: nf_conntrack: table full, dropping packet\n"),
}
