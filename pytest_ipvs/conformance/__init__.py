"""The ready-made suite: ``pytest --pyargs pytest_ipvs.conformance``.

Belongs here: ordinary test modules, one test per check of the catalogue, that use only what any
test may use.
Does not belong here: judging (``checks``), reading (``cluster``), text (``report``).
"""
