"""What a run leaves behind: the text of a failure, the terminal summary.

Belongs here: turning findings and verdicts into text and files.
Does not belong here: judging, reading a cluster.
"""
