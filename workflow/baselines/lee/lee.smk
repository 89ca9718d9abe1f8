rule lee:
    """Lee's filter of local statistics, in Perl."""
    input:
        observations=f"{RESULTS}/observations/{{dataset}}/{{problem}}.npz",
        program=f"{workflow.current_basedir}/lee.pl",
    output:
        f"{RESULTS}/restorations/{{dataset}}/{{problem}}/lee.npz",
    log:
        f"{RESULTS}/logs/restore/{{dataset}}.lee.{{problem}}.log",
    shell:
        "{GUARD} --timeout 600 {input.observations} {output}"
        " perl {input.program} {input.observations} {output} 2> {log}"
