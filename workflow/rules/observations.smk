# Observations: a folder per dataset and group of problems, the same for every method.
rule observe:
    """The images of one dataset, observed by a group of problems."""
    input:
        images="<results>/images/{dataset}.h5",
        kernels=kernels_of_batch,
    output:
        directory("<results>/observations/{dataset}/{batch}"),
    log:
        "<results>/logs/observe/{dataset}.{batch}.log",
    conda:
        "../../environment.yml"
    params:
        problems=specs_of_batch,
        code=code_of("observe.py"),
    script:
        "../scripts/observe.py"
