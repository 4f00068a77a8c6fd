"""The script that reads everything from a node in one round trip, and the frame of its output.

Runs under any /bin/sh (dash, busybox ash, bash) and needs only what every node has; what it
can't read, it says. Forks are few: on a slow node they are what the reading costs.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_ipvs.cluster.errors import FactsError
from pytest_ipvs.cluster.script_details import details_part

# Paths under /proc/sys; those that don't exist on a kernel are simply absent.
SYSCTL_PATHS = (
    "net/ipv4/vs/*",
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/ipv4/conf/*/arp_ignore",
    "net/ipv4/conf/*/arp_announce",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/tcp_mem",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/tcp_tw_reuse_delay",
    "net/ipv4/tcp_syn_retries",
    "net/ipv4/tcp_syn_linear_timeouts",
    "net/ipv4/tcp_keepalive_time",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_buckets",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_tcp_timeout_*",
    "net/netfilter/nf_conntrack_udp_timeout*",
)
# A line of numbers per processor.
CONNTRACK_PATH = "stat/nf_conntrack"
MODULE_PATHS = ("ip_vs/parameters/*", "nf_conntrack/parameters/*")

# No single quotes in the script: it travels inside a pair of them.
# $1 mark  $2 prefix of /proc and /sys (tests)  $3 seconds per section  $4 address of the node
# $5 port of kube-proxy's metrics  $6 port of its health
# A section is the text between `MARK begin NAME` and `MARK end STATUS`. An HTTP answer is the
# text up to `MARK end http:STATUS URL`: curl writes that line itself after each URL, so that one
# curl asks all of them; its start is the dearest part of the script.
_SCRIPT = r"""
M=$1; R=$2; T=$3; A=$4; P=$5; Q=$6
LC_ALL=C; export LC_ALL
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin; export PATH
unset http_proxy HTTP_PROXY https_proxy all_proxy ALL_PROXY
begin() { printf "%s begin %s\n" "$M" "$1"; }
end() { printf "\n%s end %s\n" "$M" "$1"; }
has() { command -v "$1" >/dev/null 2>&1; }
if timeout "$T" true 2>/dev/null; then L="timeout $T"; else L=; fi
printf "\n"
begin kernel
r=; v=
read -r r <"$R/proc/sys/kernel/osrelease" && read -r v <"$R/proc/sys/kernel/version"
s=$?; printf "%s\n%s" "$r" "$v"; end $s
begin files
cd "$R/" 2>&1 && $L grep "" @FILES@ /dev/null 2>&1
end $?
cd /
begin table
if [ -e "$R/proc/net/ip_vs" ]; then $L cat "$R/proc/net/ip_vs" 2>&1; s=$?
elif [ -d "$R/proc/net/" ]; then s=absent
else printf "%s" "no /proc/net"; s=1; fi
end $s
begin addresses
if has ip; then $L ip -o addr 2>&1
elif has busybox; then $L busybox ip -o addr 2>&1
else printf "%s" "neither ip nor busybox is installed"; false; fi
end $?
if has curl; then H=curl
elif has wget; then H=wget
elif busybox wget --help >/dev/null 2>&1; then H="busybox wget"
else H=; fi
# Not every busybox wget has -T; it is needed only where no timeout program ends it.
W=; [ -n "$L" ] || W="-T $T"
ask() {
  case $H in
  "") for u in "$@"; do printf "%s" "neither curl nor wget is installed"; end "127 $u"; done ;;
  curl)
    $L curl -s -g -m "$T" --connect-timeout 2 -w "\n$M end http:%{http_code} %{url_effective}\n" \
      "$@" 2>/dev/null ;;
  *)
    for u in "$@"; do
      if $L $H -q -O - $W "$u" 2>/dev/null; then s=http:200
      else
        # Only the noisy form tells the status of an error answer.
        s=$?; t=$($L $H -O /dev/null $W "$u" 2>&1); printf "\n%s" "$t"
        case $t in *"HTTP/1."*|*"ERROR "[1-5]*) s=http:error ;; esac
      fi
      end "$s $u"
    done ;;
  esac
}
# Of the metrics a few are needed, a hundred kilobytes are not.
keep() {
  grep -e "^$M" -e "^wget" -e "^kubernetes_build_info" -e "^[^a-z#]" -e "^[a-z]*$" \
    -e "^kubeproxy_sync_proxy_rules_" -e "^kubeproxy_network_programming_duration_seconds" \
    -e "^kubeproxy_proxy_[a-z]*z_total" -e "^kubeproxy_conntrack_reconciler_"
}
got() {
  case $1 in
  *"$M end http:"[1-5][0-9][0-9]" http://$2"*|*"$M end http:error http://$2"*) return 0 ;;
  esac
  return 1
}
begin http
p=; q=
for a in 127.0.0.1 "[::1]" "$A"; do
  [ -n "$a" ] || continue
  set --
  [ -n "$p" ] || set -- "http://$a:$P/proxyMode" "http://$a:$P/configz" "http://$a:$P/metrics"
  [ -n "$q" ] || set -- "$@" "http://$a:$Q/healthz" "http://$a:$Q/livez"
  [ $# -gt 0 ] || break
  o=$(ask "$@" | keep); printf "%s\n" "$o"
  if got "$o" "$a:$P/proxyMode"; then p=1; fi
  if got "$o" "$a:$Q/healthz"; then q=1; fi
done
@DETAILS@
printf "%s done\n" "$M"
exit 0
"""


def new_mark() -> str:
    """A mark that no text on the node contains by accident or on purpose."""
    return f"ipvs-{secrets.token_hex(8)}"


def facts_script(*, details: bool = False) -> str:
    """The text of the script; its parameters are listed at its top.

    ``details`` adds the sections that are dear to read; without them they are not sent either.
    """
    files = [f"proc/sys/{path}" for path in SYSCTL_PATHS]
    files += [f"sys/module/{path}" for path in MODULE_PATHS]
    files.append(f"proc/net/{CONNTRACK_PATH}")
    text = _SCRIPT.replace("@FILES@", " ".join(files))
    text = text.replace("@DETAILS@", details_part() if details else ":")
    # Some ssh servers take no command of 9000 bytes: comments and indentation stay here.
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section: its text, and its status ("0", "absent", "http:200", "" = cut off).

    ``port`` is the one that was asked, of an HTTP answer.
    """

    text: str
    status: str
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The script's output, cut: sections by name, HTTP answers by path ("/healthz").

    ``complete``: the script came to its end.
    """

    sections: Mapping[str, Section]
    answers: Mapping[str, Section]
    complete: bool


def split_output(output: str, mark: str) -> Frame:
    """Cut the script's output. Raises `FactsError` if it has no frame at all."""
    sections: dict[str, Section] = {}
    answers: dict[str, Section] = {}
    # Only lines that begin with the mark: what a file contains can't break the frame.
    pattern = re.compile(
        rf"^{re.escape(mark)} (?:begin (\S+)|end (\S*)(?: \S*:(\d{{1,5}})(/\w+))?|(done))\r?$",
        re.MULTILINE,
    )
    name: str | None = None
    begun, complete, framed = 0, False, False
    for found in pattern.finditer(output):
        framed = True
        title, status, port, path, done = found.groups()
        text = output[begun : max(begun, found.start() - 1)]
        if title is not None or done is not None:
            if name not in (None, "http"):
                sections[str(name)] = Section(text=text, status="")
            name, complete = title, complete or done is not None
        elif port is not None:
            # Several addresses may have been asked: an answer is better than none.
            if path not in answers or (status.startswith("http:") and status != "http:000"):
                answers[path] = Section(text=text, status=status, port=int(port))
        elif name is not None:
            sections[name] = Section(text=text, status=status or "")
            name = None
        begun = found.end() + 1
    if not framed:
        raise FactsError(f"its answer is not that of the facts script: {_first_line(output)!r}")
    if name not in (None, "http"):
        sections[str(name)] = Section(text=output[begun:], status="")
    return Frame(sections=sections, answers=answers, complete=complete)


def _first_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[0][:80] if lines else "nothing"
