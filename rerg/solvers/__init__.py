"""The solvers: procedures that restore with an RG, a module each, found by being there.

A module has the constants LABEL, LINE, MARKER and OPTIONS, and where they apply TUNED (one of the
options) and DESCENT; `MAP`, the map that it iterates, and
`solve(T, watch=None, **options) -> Solution`, from T.start().
"""
