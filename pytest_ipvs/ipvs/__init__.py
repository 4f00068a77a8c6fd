"""What IPVS and kube-proxy's use of it are: tables, connections, expectations, comparison.

Belongs here: parsers of kernel text, the objects of the API as small records, the table that
kube-proxy should program, the comparison of both, kernel fixes and version rules.
Does not belong here: input or output of any kind, pytest, how a node is reached.
"""
