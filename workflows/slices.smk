# Simulators of slices: trained side by side, one ensemble for each, then merged to an ensemble of maps, which sample.
#
#     snakemake --snakefile workflows/slices.smk --configfile workflows/slices.yaml --cores 2
#
# A killed workflow, started again, does what is missing and ends with the same results.
import json

from snakemake.exceptions import WorkflowError

EXPECTED = "work files fit fit_options replicas slices by conditions conditions_pass_through".split()
if set(config) != set(EXPECTED):
    odd = ", ".join(sorted(set(config) ^ set(EXPECTED)))
    raise WorkflowError(f"configuration: {odd} too much or missing, expected options of workflows/slices.yaml")
if config["replicas"] == 1 or config["replicas"] < 0:
    raise WorkflowError(f"replicas: {config['replicas']} found, expected 0, or at least 2, which have a spread")

WORK, SLICES = config["work"], config["slices"]
MEMBERS = ["nominal", *(f"replica_{k + 1:03d}" for k in range(config["replicas"]))]


def options(wildcards):
    """Options of a slice's trainings: its files and its cut."""
    own = SLICES[wildcards.slice]
    return json.dumps(["--data.files", own.get("files", config["files"]), "--data.columns.cut", own["cut"],
                       *map(str, config["fit_options"])])


wildcard_constraints:
    slice="|".join(SLICES),
    member=r"nominal|replica_\d+",


rule all:
    input:
        [f"{WORK}/generated/{member}.root" for member in MEMBERS],


# Only the record is an output: Snakemake would remove the unfinished training of a killed job.
rule fit:
    input:
        config=config["fit"],
        files=lambda wildcards: SLICES[wildcards.slice].get("files", config["files"]),
    output:
        f"{WORK}/ensemble/{{slice}}/{{member}}/member.json",
    params:
        folder=f"{WORK}/ensemble/{{slice}}",
        options=options,
    shell:
        "calorefine ensemble --fit {input.config:q} --output {params.folder:q} --only '[{wildcards.member}]'"
        " --options={params.options:q}"


rule merge:
    input:
        [f"{WORK}/ensemble/{slice}/{member}/member.json" for slice in SLICES for member in MEMBERS],
    output:
        [f"{WORK}/map/{member}/best.ckpt" for member in MEMBERS],
    params:
        slices=[f"{WORK}/ensemble/{slice}" for slice in SLICES],
        by=config["by"],
        folder=f"{WORK}/map",
    shell:
        "rm -rf {params.folder:q} && calorefine merge {params.slices:q} --by {params.by:q} --output {params.folder:q}"


rule sample:
    input:
        checkpoint=f"{WORK}/map/{{member}}/best.ckpt",
        conditions=config["conditions"],
    output:
        f"{WORK}/generated/{{member}}.root",
    params:
        carried=config["conditions_pass_through"],
    shell:
        "calorefine sample --checkpoint {input.checkpoint:q} --conditions {input.conditions:q} --output {output:q}"
        " --pass-through {params.carried:q} --overwrite true"
