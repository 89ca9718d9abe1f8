rule lee:
    """Lee's filter of local statistics, in Perl."""
    input:
        observations=observations_of,
        program=os.path.relpath(f"{workflow.current_basedir}/lee.pl"),
    output:
        "<results>/restorations/{dataset}/{problem}/lee.npz",
    log:
        "<results>/logs/restore/{dataset}.lee.{problem}.log",
    shell:
        "{GUARD} --timeout 600 {input.observations:q}/{wildcards.problem}.npz {output:q}"
        " perl {input.program:q} {input.observations:q}/{wildcards.problem}.npz {output:q} 2> {log:q}"
