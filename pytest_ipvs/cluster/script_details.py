"""The second half of the facts script: what is dear to read and read once per run.

It follows the first half in the same shell, so that it is still one round trip. Nothing here
may load a kernel module or change a node: a tool runs only where its module is loaded already.
"""

from __future__ import annotations

# Beyond these a walk costs a node seconds: /proc/net/ip_vs_conn starts again from the beginning
# of the table for each page of text.
MAX_IPVS_ENTRIES = 200_000
MAX_CONNTRACK_ENTRIES = 1_000_000
MAX_TEMPLATES = 2000
MAX_PORT_USE = 200
MAX_ENTRIES = 1000
MAX_LOG_LINES = 50

# No single quotes, as in the first half, whose variables and functions it uses. A function reads
# one section: what it prints is the section's text, its status the section's; of a failure the
# last line says why. After three sections that ran into the time limit the rest is left out.
_SCRIPT = r"""
X=0
cd "$R/"
part() {
  begin "details.$1"
  if [ "$X" -ge 3 ]; then lacks "three sections before it ran into the time limit"; s=1
  else "d_$1" 2>&1; s=$?; fi
  case $s in 124|143) X=$((X + 1)) ;; esac
  end "$s"
}
lacks() { printf "%s" "$1"; return 1; }
need() { has "$1" || lacks "$1 is not installed"; }
# A tool that writes to a pipe buffers its output, and cuts it anywhere; its warnings wait for no
# buffer, and would come in the middle of a line. Only of one that fails are they needed.
apart() {
  e=$("$@" 2>&1 >&3); s=$?
  [ $s = 0 ] || [ -z "$e" ] || printf "\n%s\n" "$e"
  return $s
} 3>&1
run() { o=$(apart $L "$@"); s=$?; [ $s = 0 ] || printf "%s" "$o"; return $s; }
out() { printf "%s\n" "$o"; }
loaded() { [ ! -d sys/module ] || [ -d "sys/module/$1" ]; }
ipvs() { [ -e proc/net/ip_vs ] || lacks "ip_vs is not loaded"; }
if has awk; then K=awk; else K="busybox awk"; fi
d_modules() {
  # A kernel that can load none has no such file.
  if [ -e proc/modules ]; then sed "s/ .*//" proc/modules || return; fi
  ls sys/module
  echo =
  for f in lib usr/lib; do
    f=$f/modules/$r/modules.builtin
    if [ -r "$f" ]; then sed "s:.*/::" "$f"; return; fi
  done
  echo none
}
# Processes of kube-proxy, or those that may hold it, in the network namespace of this shell.
proxies() {
  for f in $(grep -lxE "kube-proxy|hyperkube|k3s(-server|-agent)?" proc/[0-9]*/comm); do
    p=${f%/comm}
    # A hyperkube is each of the components.
    if grep -q hyperkube $f && ! grep -q proxy $p/cmdline; then continue; fi
    if [ -e $p/ns/net ] && [ -e proc/self/ns/net ] &&
      ! [ $p/ns/net -ef proc/self/ns/net ]; then continue; fi
    echo $p
  done 2>/dev/null
}
d_cpus() {
  # kube-proxy counts the processors it may run on.
  set -- $PS
  cat sys/devices/system/cpu/online || return
  grep "^Cpus_allowed_list" ${1:-proc/self}/status
}
d_proxy_command() {
  [ -n "$PS" ] || lacks "no process is named kube-proxy" || return
  for p in $PS; do
    tr "\n\000" " \n" <$p/cmdline | sed "s/^/>/"
    echo =
  done
}
d_sysctl_files() {
  n=
  z=/sysctl.d/*.conf
  for f in etc$z run$z usr/local/lib$z usr/lib$z lib$z etc/sysctl.conf; do
    [ -e "$f" ] || continue
    # Debian links a file of sysctl.d to it: then it has its place already.
    case $f$n in etc/sysctl.conf1) continue ;; esac
    if [ "$f" -ef etc/sysctl.conf ]; then n=1; fi
    echo "=$f"
    set -- "$@" "$f"
  done
  [ $# -gt 0 ] || return 0
  $L grep -n "^[[:space:]]*[^#;[:space:]]" "$@" /dev/null
  s=$?; [ $s = 1 ] || return $s
}
d_uplinks() {
  cat proc/net/route >/dev/null || return
  grep "^[^[:space:]]*[[:space:]]00000000[[:space:]]" proc/net/route
  if [ -e proc/net/ipv6_route ]; then grep "^0\{32\} 00 " proc/net/ipv6_route; fi
  return 0
}
rules() {
  w=; e=127
  for q in $1-save $1-legacy-save $1-nft-save; do
    has $q || continue
    # The other flavour is asked only where that can load nothing.
    case $q in
    *y-save) t=; read -r t 2>/dev/null <proc/net/$2_names; [ -n "$t" ] || continue ;;
    *nft-save) loaded nf_tables || continue ;;
    esac
    o=$(apart $L $q); s=$?
    case $o in *:KUBE-*) w=$o; e=$s; break ;; esac
    [ $e = 0 ] || { w=$o; e=$s; }
  done
  [ $e != 127 ] || need $1-save || return
  [ $e = 0 ] || { printf "%s" "$w"; return $e; }
  printf "%s\n" "$w" | sed -n -e "/^# Gen/p" -e "/^\*nat/,/^COMMIT/p" \
    -e "/^\*filter/,/^COMMIT/p" -e "/^\*mangle/,/^COMMIT/p"
}
d_iptables() { rules iptables ip_tables; }
d_ip6tables() {
  [ -e proc/net/if_inet6 ] || lacks "the node has no IPv6" || return
  rules ip6tables ip6_tables
}
d_ipsets() {
  loaded ip_set || return 0
  need ipset && run ipset save || return
  out | grep -e "^create KUBE-" -e "^add KUBE-"
  return 0
}
d_ipvs_timeouts() { ipvs && need ipvsadm && $L ipvsadm -L --timeout; }
# An entry was sent to the source of its answer. Of UDP, what a client asked for is counted with it.
E="/^rc [0-9]+\$/ { rc = \$2; next }
{ last = \$0 }
u ? /^(ipv. +[0-9]+ +)?udp / : (/SYN_SENT/ && /UNREPLIED/) {
  n = 0
  for (i = NF; i; i--) {
    if (\$i ~ /^src=/ && !n++) b = substr(\$i, 5)
    if (\$i ~ /^dst=/) a = substr(\$i, 5)
  }
  if (!u && n>1) c[b]++
  if (u && a!=b) c[a \" \" b]++
}
END {
  if (rc) { print last; exit rc }
  q = \"sort -rn | head -n @MAX_ENTRIES@\"
  for (a in c) print c[a], a | q
}"
sent() {
  u=$1; shift
  f=proc/sys/net/netfilter/nf_conntrack_count
  [ -e $f ] || lacks "nf_conntrack is not loaded" || return
  # Not read: some shells ask for one byte at a time, and the kernel gives the first only.
  n=$(cat $f) || return
  [ $n -le @MAX_CONNTRACK_ENTRIES@ ] ||
    lacks "nf_conntrack has $n entries, more than @MAX_CONNTRACK_ENTRIES@" || return
  if has conntrack; then
    for v in ipv4 ipv6; do
      # Without IPv6 the second would load it.
      [ $v = ipv4 ] || [ -e proc/net/if_inet6 ] || continue
      apart $L conntrack -L -f $v "$@" || { echo "rc $s"; break; }
    done | $K -v u=$u "$E"
  elif [ -e proc/net/nf_conntrack ] && [ $n -le @MAX_IPVS_ENTRIES@ ]; then
    $L $K -v u=$u "$E" proc/net/nf_conntrack
  else need conntrack; fi
}
d_syn_sent() { sent 0 -p tcp --state SYN_SENT; }
d_udp_sent() { sent 1 -p udp; }
# Connections are counted, templates printed as they are.
C="\$3 == \"0000\" { if (t++ < @MAX_TEMPLATES@) print; next }
\$3 ~ /^[0-9A-F]+\$/ { c[\$1 \" \" \$2 \" \" \$4 \" \" \$5]++ }
END {
  fflush()
  q = \"sort -k 2rn | head -n @MAX_PORT_USE@\"
  for (k in c) print \"=\", c[k], k | q
}"
d_connections() {
  ipvs || return
  n=$($L $K "\$1 == \"->\" { n += \$5 + \$6 } END { print n + 0 }" proc/net/ip_vs)
  [ "${n:-0}" -le @MAX_IPVS_ENTRIES@ ] ||
    lacks "the table has $n connections, more than @MAX_IPVS_ENTRIES@" || return
  $L $K "$C" proc/net/ip_vs_conn
}
d_table_full() {
  need dmesg && run dmesg || return
  out | grep -c "nf_conntrack: table full"
  return 0
}
d_proxy_log() {
  set --
  for f in $(ls -t var/log/pods/kube-system_kube-proxy*/*/*.log var/log/kube-proxy.log \
      2>/dev/null); do
    # The log before the last restart is worth a look too.
    [ $# -ge 2 ] || set -- "$f" "$@"
  done
  [ $# -gt 0 ] || lacks "no log of kube-proxy is under /var/log" || return
  # A log in JSON names no level: an error is what has no verbosity, and gets an E in front. The
  # second form is that of a runtime that puts each line into JSON of its own.
  { $L grep -hE "(^|[ \"])E[0-9]{4} ([0-9]{2}[:.]){3}|\"ts.?\":[0-9]" "$@"
    s=$?; [ $s -le 1 ] || printf "\nrc %s\n" $s; } |
    sed -E "/\"ts\":.*,\"v\":|\"log.*,.\"v.\":/d;s/\{.?\"ts/E0000 &/" |
    tail -n @MAX_LOG_LINES@ | cut -c 1-500
}
d_tools() {
  if has iptables; then $L iptables --version; fi
  # Its version asks the kernel, which would load ip_set.
  if has ipset && loaded ip_set; then $L ipset --version; fi
  return 0
}
PS=$(proxies)
for d in @SECTIONS@; do part $d; done
"""

SECTIONS = (
    "modules",
    "cpus",
    "proxy_command",
    "sysctl_files",
    "uplinks",
    "iptables",
    "ip6tables",
    "ipsets",
    "ipvs_timeouts",
    "syn_sent",
    "udp_sent",
    "connections",
    "table_full",
    "proxy_log",
    "tools",
)


def details_part() -> str:
    """The text that goes between the first half of the script and its end."""
    text = _SCRIPT.replace("@SECTIONS@", " ".join(SECTIONS))
    for name in (
        "MAX_IPVS_ENTRIES",
        "MAX_CONNTRACK_ENTRIES",
        "MAX_TEMPLATES",
        "MAX_PORT_USE",
        "MAX_ENTRIES",
        "MAX_LOG_LINES",
    ):
        text = text.replace(f"@{name}@", str(globals()[name]))
    return text.strip()
