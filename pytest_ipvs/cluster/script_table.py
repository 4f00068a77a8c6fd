"""The script that reads the whole of a node's /proc/net/ip_vs.

Before kernel 7.1 one hash table holds the virtual servers of all network namespaces. A reading that
goes on after the first page counts those of all namespaces to find its place, and then only its
own: in a namespace that is not alone, as a node of kind is, it passes some over (ip_vs_ctl.c,
ip_vs_info_array and ip_vs_info_seq_next). Only what follows a seek is at the right place, and of
that only the first virtual server. So there this script reads one page, and then one virtual server
after the other. A machine of its own has the file tcp_mem, which only the first namespace has.
"""

from __future__ import annotations

FIRST_NAMESPACE = "net.ipv4.tcp_mem"
"""A sysctl that only a kernel's first network namespace has."""

# $1 prefix of /proc (tests). No single quotes: the script travels inside a pair of them.
# A seek to the first byte of a virtual server goes wrong, so each is read from its second byte on;
# the first is told by the others. It ends where the next line begins with a protocol.
_SCRIPT = r"""
f=$1/proc/net/ip_vs
[ -e "$1/proc/sys/net/ipv4/tcp_mem" ] && exec cat "$f"
[ -r "$f" ] || exec cat "$f"
LC_ALL=C; export LC_ALL
nl="
"
piece() { exec dd if="$f" bs=65536 count=1 "$@" 2>/dev/null; }
whole() {
  t=$(piece)$nl || return 2
  while :; do
    r=$(piece iflag=skip_bytes skip=$((${#t} + 1))) || return 2
    case $r in
    "") return 0 ;;
    CP\ *) c=T ;;
    DP\ *) c=U ;;
    CTP\ *) c=S ;;
    WM\ *) c=F ;;
    *) return 1 ;;
    esac
    t=$t$c$(printf "%s" "$r" | sed -n -e 1p -e "2,\${/^[A-Z]/q;p;}")$nl
  done
}
for i in 1 2 3; do
  whole; s=$?
  case $s in
  0) printf "%s" "$t"; exit 0 ;;
  2) echo "dd can not read a part of /proc/net/ip_vs" >&2; exit 2 ;;
  esac
done
echo "/proc/net/ip_vs changed while it was read, three times" >&2
exit 1
"""


def table_script() -> str:
    """The text of the script; it ends with another status than 0 where it says why on stderr."""
    lines = (line.strip() for line in _SCRIPT.splitlines())
    return "\n".join(line for line in lines if line)
